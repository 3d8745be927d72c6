//! Whether Istio tells its sidecars to log to us.

use super::connect::Cluster;
use super::error::sentence;
use crate::check::Answer;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams};
use serde_json::Value;
use std::collections::BTreeSet;

/// The Service of deploy/ to which sidecars log.
pub(super) const SERVICE: &str = "grpc-als";
const NAME: &str = "Istio's settings";
const PROVIDER_FIX: &str = "merge deploy/istio/mesh-config.yaml into istiod's mesh configuration";
const TURN_ON_FIX: &str = "apply deploy/istio/telemetry.yaml, or name the provider in defaultProviders.accessLogging";

/// Looks at the mesh configuration, and at Telemetry resources.
pub(super) async fn look(cluster: &Cluster, istio_namespace: &str) -> Vec<Answer> {
    let configs: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), istio_namespace);
    let found = cluster.patiently(configs.get_opt("istio"), "get the ConfigMap istio", istio_namespace).await;
    let mesh = match found {
        Err(error) => {
            return vec![Answer::note(
                NAME,
                format!("not known: {error}"),
                "have somebody look who may read the ConfigMap istio",
            )];
        }
        Ok(None) => {
            let text = format!("there is no ConfigMap istio in {istio_namespace}");
            return vec![Answer::note(
                NAME,
                text,
                "name istiod's namespace with --istio-namespace; of a revision's ConfigMap nothing is known here",
            )];
        }
        Ok(Some(map)) => map.data.and_then(|mut d| d.remove("mesh")).unwrap_or_default(),
    };
    let mesh = match serde_saphyr::from_str::<Value>(&mesh) {
        Ok(mesh) => mesh,
        Err(error) => {
            let text = format!("the mesh configuration is no YAML: {}", sentence(&error.to_string()));
            return vec![Answer::bad(NAME, text, PROVIDER_FIX)];
        }
    };
    judge(&mesh, &cluster.agent_namespace, telemetries(cluster).await.as_deref())
}

/// The Telemetry resources of all namespaces; `None` if they cannot be seen.
async fn telemetries(cluster: &Cluster) -> Option<Vec<Value>> {
    for version in ["v1", "v1alpha1"] {
        let resource = ApiResource {
            group: "telemetry.istio.io".to_owned(),
            version: version.to_owned(),
            api_version: format!("telemetry.istio.io/{version}"),
            kind: "Telemetry".to_owned(),
            plural: "telemetries".to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        if let Ok(list) = cluster.patiently(api.list(&ListParams::default()), "list telemetries", "").await {
            return Some(list.items.into_iter().map(|t| t.data).collect());
        }
    }
    None
}

/// The access log providers that lead to our Service, by kind.
struct Providers {
    http: BTreeSet<String>,
    tcp: BTreeSet<String>,
}

fn providers(mesh: &Value, namespace: &str) -> Providers {
    let list = |kind: &str| -> BTreeSet<String> {
        let all = mesh["extensionProviders"].as_array().into_iter().flatten();
        let ours = all.filter(|p| p[kind]["service"].as_str().is_some_and(|s| leads_here(s, namespace)));
        ours.filter_map(|p| p["name"].as_str().map(str::to_owned)).collect()
    };
    Providers { http: list("envoyHttpAls"), tcp: list("envoyTcpAls") }
}

/// True for `grpc-als.meshdiff-system.svc.cluster.local`, `meshdiff-system/…`, and for the ServiceEntry of deploy/istio.
fn leads_here(service: &str, namespace: &str) -> bool {
    let host = service.rsplit('/').next().unwrap_or(service);
    host == format!("{SERVICE}.{namespace}")
        || host.starts_with(&format!("{SERVICE}.{namespace}.svc"))
        || host.starts_with("meshdiff-als.")
}

fn judge(mesh: &Value, namespace: &str, telemetries: Option<&[Value]>) -> Vec<Answer> {
    let legacy = mesh["defaultConfig"]["envoyAccessLogService"]["address"].as_str();
    if let Some(address) = legacy.filter(|a| leads_here(a.split(':').next().unwrap_or(a), namespace)) {
        return vec![if mesh["enableEnvoyAccessLogService"] == Value::Bool(true) {
            Answer::good(NAME, format!("every sidecar logs to {} (the legacy form)", sentence(address)))
        } else {
            Answer::bad(
                NAME,
                "envoyAccessLogService has an address and is not enabled",
                "set enableEnvoyAccessLogService: true",
            )
        }];
    }
    let Providers { http, tcp } = providers(mesh, namespace);
    if http.is_empty() {
        let text = format!(
            "no extension provider of kind envoyHttpAls has the service {SERVICE}.{namespace}: sidecars log nothing to meshdiff"
        );
        return vec![Answer::bad(NAME, text, PROVIDER_FIX)];
    }
    let default: BTreeSet<&str> =
        mesh["defaultProviders"]["accessLogging"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let by_default = http.iter().any(|p| default.contains(p.as_str()));
    let named = |telemetry: &Value| {
        let logging = telemetry["spec"]["accessLogging"].as_array().cloned().unwrap_or_default();
        let on = logging.iter().filter(|l| l["disabled"] != Value::Bool(true));
        let names = on.flat_map(|l| l["providers"].as_array().cloned().unwrap_or_default());
        names.filter_map(|p| p["name"].as_str().map(str::to_owned)).any(|name| http.contains(&name))
    };
    let mut answers = vec![match telemetries {
        _ if by_default => Answer::good(NAME, "the provider is in defaultProviders.accessLogging"),
        Some(list) if list.iter().any(named) => Answer::good(NAME, "a Telemetry turns the provider on"),
        Some(_) => Answer::bad(NAME, "the provider is defined, and nothing turns it on", TURN_ON_FIX),
        None => {
            Answer::note(NAME, "the provider is defined; whether a Telemetry turns it on cannot be seen", TURN_ON_FIX)
        }
    }];
    if tcp.is_empty() {
        answers.push(Answer::note(
            NAME,
            "no provider of kind envoyTcpAls: connections without HTTP are not told by the proxies",
            PROVIDER_FIX,
        ));
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    fn mesh(yaml: &str) -> Value {
        serde_saphyr::from_str(yaml).expect("YAML")
    }

    const PROVIDERS: &str = "
extensionProviders:
  - name: otel
    envoyOtelAls: {service: otel.x.svc.cluster.local, port: 4317}
  - name: meshdiff-http
    envoyHttpAls: {service: grpc-als.meshdiff-system.svc.cluster.local, port: 9901}
  - name: meshdiff-tcp
    envoyTcpAls: {service: meshdiff-system/grpc-als.meshdiff-system.svc.cluster.local, port: 9901}
";

    #[test]
    fn a_provider_must_be_there_and_be_turned_on() {
        let of =
            |yaml: &str, telemetries: Option<&[Value]>| judge(&mesh(yaml), "meshdiff-system", telemetries).remove(0);
        let none = of("{}", Some(&[]));
        assert!(none.status == Status::Bad && none.text.contains("grpc-als.meshdiff-system"), "{none:?}");
        let off = of(PROVIDERS, Some(&[]));
        assert!(off.status == Status::Bad && off.text.contains("nothing turns it on"), "{off:?}");
        let telemetry = mesh("{spec: {accessLogging: [{providers: [{name: meshdiff-http}, {name: meshdiff-tcp}]}]}}");
        assert_eq!(of(PROVIDERS, Some(&[telemetry])).status, Status::Good);
        let disabled = mesh("{spec: {accessLogging: [{disabled: true, providers: [{name: meshdiff-http}]}]}}");
        assert_eq!(of(PROVIDERS, Some(&[disabled])).status, Status::Bad);
        assert_eq!(of(PROVIDERS, None).status, Status::Note);
        let default = format!("{PROVIDERS}\ndefaultProviders: {{accessLogging: [meshdiff-http]}}");
        assert_eq!(of(&default, Some(&[])).status, Status::Good);
    }

    #[test]
    fn the_legacy_form_is_known() {
        let of = |enabled: bool| {
            let yaml = format!(
                "{{enableEnvoyAccessLogService: {enabled}, defaultConfig: {{envoyAccessLogService: {{address: 'grpc-als.meshdiff-system:9901'}}}}}}"
            );
            judge(&mesh(&yaml), "meshdiff-system", None).remove(0).status
        };
        assert_eq!((of(true), of(false)), (Status::Good, Status::Bad));
    }
}
