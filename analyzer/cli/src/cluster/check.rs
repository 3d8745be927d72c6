//! `check --cluster`: whether reports of a cluster would tell everything, and what to do where not.

use super::agents::{self, Agent};
use super::connect::Cluster;
use super::error::{ClusterError, sentence};
use super::rights::{Right, may};
use super::sidecars::{Sidecar, sidecars};
use super::{fetch, istio};
use crate::args::CheckArgs;
use crate::check::{Answer, Status, show};
use crate::exit::Failure;
use http::HeaderValue;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Back to when access logs of each sidecar are looked for.
const RECENTLY: Duration = Duration::from_secs(5 * 60);
/// A clock that is off by this much shows in a report.
const CLOCK_NOTED_NS: i128 = 1_000_000_000;
/// Names that are said before the rest is counted.
const NAMED: usize = 5;

/// `meshdiff check --cluster`.
pub(crate) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let answers = super::block_on(async {
        let cluster = Cluster::connect(&args.of).await?;
        Ok(look(&cluster, args).await?)
    })?;
    let ready = answers.iter().all(|a| a.status != Status::Bad);
    let conclusion = match answers.iter().filter(|a| a.status == Status::Bad).count() {
        0 => "meshdiff report would work in this cluster".to_owned(),
        1 => "one thing keeps meshdiff report from telling everything".to_owned(),
        n => format!("{n} things keep meshdiff report from telling everything"),
    };
    let text = if args.json {
        show::answers_json(&answers, ready, &conclusion)
    } else {
        show::answers_table(&answers, &conclusion)
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    if ready { Ok(()) } else { Err(Failure::Answered) }
}

async fn look(cluster: &Cluster, args: &CheckArgs) -> Result<Vec<Answer>, ClusterError> {
    // Without an API server there is nothing to look at.
    let version = cluster.patiently(cluster.client.apiserver_version(), "get /version", "").await?;
    let mut answers =
        vec![Answer::good("API server", format!("{} of {}", sentence(&version.git_version), cluster.name))];
    answers.extend(rights(cluster, args).await?);
    let agents = match agents::list(cluster).await {
        Ok(agents) => agents,
        Err(error @ (ClusterError::NoAgents { .. } | ClusterError::Forbidden { .. })) => {
            answers.push(Answer::bad(
                "agents",
                error.to_string(),
                "install deploy/ in the cluster, or have somebody do it",
            ));
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let sidecars = sidecars(cluster, args.namespace.as_deref()).await;
    answers.extend(coverage(&agents, &sidecars));
    let token = agents::token(cluster, &args.of).await;
    match &token {
        Ok(token) => {
            for agent in &agents {
                answers.push(node(cluster, agent, token).await);
            }
        }
        Err(error) if !agents.is_empty() => {
            answers.push(Answer::bad(
                "agents' token",
                error.to_string(),
                "bind yourself to the Role meshdiff-user, or use --token-file",
            ));
        }
        Err(_) => {}
    }
    answers.push(service(cluster).await);
    answers.extend(istio::look(cluster, &args.istio_namespace).await);
    if let (Ok(token), Ok(sidecars), false) = (&token, &sidecars, agents.is_empty()) {
        answers.extend(silent(cluster, &agents, token, args.namespace.as_deref(), sidecars).await);
    }
    Ok(answers)
}

async fn rights(cluster: &Cluster, args: &CheckArgs) -> Result<Vec<Answer>, ClusterError> {
    const NAME: &str = "your rights";
    const FIX: &str = "have yourself bound to the roles of deploy/README.md: meshdiff-user where the agents are, meshdiff-viewer where applications are";
    let agents = Some(cluster.agent_namespace.as_str());
    let of = |verb, resource, subresource, name, namespace, purpose| Right {
        verb,
        resource,
        subresource,
        name,
        namespace,
        purpose,
    };
    let applications = args.namespace.as_deref();
    // The first two are needed, the others are better to have.
    let wanted = [
        (true, of("list", "pods", None, None, agents, "to find the agents")),
        (true, of("get", "pods", Some("proxy"), None, agents, "to ask them")),
        (false, of("get", "secrets", None, Some(agents::SECRET), agents, "to have their token (or use --token-file)")),
        (false, of("list", "pods", None, None, applications, "to know who has a sidecar, and for -l and deploy/NAME")),
        (
            false,
            of(
                "get",
                "configmaps",
                None,
                Some("istio"),
                Some(args.istio_namespace.as_str()),
                "to look at Istio's settings",
            ),
        ),
    ];
    let mut answers = Vec::new();
    for (needed, right) in wanted {
        let what = right.what();
        answers.push(match (may(cluster, &right).await?, needed) {
            (true, _) => Answer::good(NAME, format!("you may {what}")),
            (false, true) => Answer::bad(NAME, format!("you may not {what}: {}", right.purpose), FIX),
            (false, false) => Answer::note(NAME, format!("you may not {what}: {}", right.purpose), FIX),
        });
    }
    Ok(answers)
}

fn coverage(agents: &[Agent], sidecars: &Result<BTreeSet<Sidecar>, ClusterError>) -> Vec<Answer> {
    const NAME: &str = "agents";
    let mut answers = Vec::new();
    for agent in agents {
        if let Some(why) = &agent.not_running {
            let fix = format!("kubectl describe pod {}", agent.pod);
            answers.push(Answer::bad(NAME, format!("the one on {} does not run: {why}", agent.node), fix));
        }
    }
    let sidecars = match sidecars {
        Ok(sidecars) => sidecars,
        Err(error) => {
            let fix = "name a namespace whose pods you may list with --namespace";
            answers.push(Answer::note(NAME, format!("which nodes have sidecars is not known: {error}"), fix));
            return answers;
        }
    };
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for sidecar in sidecars {
        *nodes.entry(&sidecar.node).or_default() += 1;
    }
    if sidecars.is_empty() {
        let fix = "label the namespace for injection and restart its pods, or name another with --namespace";
        answers.push(Answer::bad("sidecars", "no running pod has one", fix));
    }
    let without: Vec<String> = nodes
        .iter()
        .filter(|(n, _)| !agents.iter().any(|a| a.node == **n))
        .map(|(n, pods)| format!("{n} ({pods})"))
        .collect();
    if without.is_empty() {
        if !agents.is_empty() {
            let text = format!("{} agents; one on each of the {} nodes with sidecars", agents.len(), nodes.len());
            answers.push(Answer::good(NAME, text));
        }
    } else if !agents.is_empty() {
        let fix = "let the DaemonSet run there: look at its tolerations and nodeSelector";
        answers.push(Answer::bad(NAME, format!("none on nodes that have pods with sidecars: {}", some(&without)), fix));
    }
    answers
}

/// Some of a list, and how many more there are.
fn some(list: &[String]) -> String {
    let named = list.iter().take(NAMED).map(|n| sentence(n)).collect::<Vec<_>>().join(", ");
    if list.len() > NAMED { format!("{named} and {} more", list.len() - NAMED) } else { named }
}

/// What an agent says of itself (`/v1/info`). What it does not say is not known.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    version: Option<String>,
    schema_version: Option<String>,
    tier: Option<String>,
    now_ns: Option<i64>,
}

async fn node(cluster: &Cluster, agent: &Agent, token: &HeaderValue) -> Answer {
    let name = format!("node {}", agent.node);
    if let Some(why) = &agent.not_running {
        return Answer::bad(name, why.clone(), format!("kubectl describe pod {}", agent.pod));
    }
    let before = wall_clock_ns();
    let answer = fetch::get(cluster, &agent.pod, "v1/info", token).await;
    let info = match answer {
        Err(error) => {
            let fix = "look at the agent's log; the NetworkPolicy must let the API server in, and the Secret be the one it started with";
            return Answer::bad(name, format!("its agent cannot be asked: {error}"), fix);
        }
        Ok(response) => {
            let body = http_body_util::Limited::new(response.into_body(), 1 << 20).collect().await;
            let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            match serde_json::from_slice::<Info>(&bytes) {
                Ok(info) => info,
                Err(error) => {
                    return Answer::bad(
                        name,
                        format!("its agent's answer is not understood: {error}"),
                        "use one version of meshdiff",
                    );
                }
            }
        }
    };
    judge_node(name, &info, before, wall_clock_ns())
}

/// `before` and `after` are our clock around the question.
fn judge_node(name: String, info: &Info, before: i128, after: i128) -> Answer {
    let known = |text: &Option<String>| text.as_deref().map_or_else(|| "unknown".to_owned(), sentence);
    let (version, tier) = (known(&info.version), known(&info.tier));
    if info.schema_version.as_deref().is_some_and(|s| !fetch::is_read(s)) {
        let text = format!(
            "its agent is version {version} and writes {}, which this meshdiff cannot read",
            known(&info.schema_version)
        );
        return Answer::bad(name, text, "use the version of meshdiff that runs in the cluster");
    }
    if tier == "none" {
        let fix = "look at the agent's log for what the kernel refused (`meshdiff check` in its pod says what to do)";
        return Answer::bad(name, "no kind of probes works there: only bounds of segments are known", fix);
    }
    let off = info.now_ns.map(i128::from).map_or(0, |at| if at < before { at - before } else { (at - after).max(0) });
    if off.abs() > CLOCK_NOTED_NS {
        let text = format!("{tier} probes; its wall clock differs from yours by {:.1} s", off as f64 / 1e9);
        return Answer::note(name, text, "let time synchronisation run; joins and segments do not depend on it");
    }
    if info.version.as_deref().is_some_and(|v| v != env!("CARGO_PKG_VERSION")) {
        let text = format!("{tier} probes; version {version}, yours is {}", env!("CARGO_PKG_VERSION"));
        return Answer::note(name, text, "use one version of meshdiff");
    }
    Answer::good(name, format!("{tier} probes, version {version}"))
}

fn wall_clock_ns() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX))
}

/// The Service to which sidecars log.
pub(super) async fn service(cluster: &Cluster) -> Answer {
    const NAME: &str = "access log service";
    const APPLY: &str = "apply deploy/ again";
    let namespace = &cluster.agent_namespace;
    let api: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let found = match cluster.patiently(api.get_opt(istio::SERVICE), "get services", namespace).await {
        Ok(found) => found,
        Err(error) => {
            return Answer::note(NAME, format!("not known: {error}"), "bind yourself to the Role meshdiff-user");
        }
    };
    let Some(spec) = found.and_then(|s| s.spec) else {
        return Answer::bad(
            NAME,
            format!("there is no Service {} in {namespace}: istiod silently leaves its provider out", istio::SERVICE),
            APPLY,
        );
    };
    let named = spec.ports.iter().flatten().any(|p| p.name.as_deref().is_some_and(|n| n.starts_with("grpc")));
    if !named {
        return Answer::bad(
            NAME,
            "no port of it has a name that begins with grpc: Envoy would not speak HTTP/2 to it",
            APPLY,
        );
    }
    if spec.internal_traffic_policy.as_deref() != Some("Local") {
        let text = "its internalTrafficPolicy is not Local: sidecars log to agents of other nodes, where their sockets are not seen";
        return Answer::bad(NAME, text, APPLY);
    }
    Answer::good(NAME, format!("{}.{namespace}, to the agent of the same node", istio::SERVICE))
}

/// Sidecars of which no access log came lately.
async fn silent(
    cluster: &Cluster,
    agents: &[Agent],
    token: &HeaderValue,
    namespace: Option<&str>,
    sidecars: &BTreeSet<Sidecar>,
) -> Vec<Answer> {
    const NAME: &str = "access logs";
    let question = fetch::Question { namespace, since: RECENTLY };
    let Ok(folder) = tempfile::tempdir() else { return Vec::new() };
    let fetched = match fetch::all(cluster, agents, token, &question, folder.path()).await {
        Ok(fetched) => fetched,
        // Each agent's own answer says it.
        Err(_) => return Vec::new(),
    };
    let read = tokio::task::spawn_blocking(move || super::merge::read(fetched.captures)).await;
    let Ok(Ok(merged)) = read else { return Vec::new() };
    let heard: BTreeSet<(String, String)> = {
        let wrote: BTreeSet<_> = merged.data.access_logs.iter().map(|l| &l.node).collect();
        let proxies = merged.data.proxies.iter().filter(|p| wrote.contains(&p.node));
        proxies.filter_map(|p| Some((p.namespace.clone()?, p.pod.clone()?))).collect()
    };
    let quiet: Vec<String> = sidecars
        .iter()
        .filter(|s| !heard.contains(&(s.namespace.clone(), s.pod.clone())))
        .map(|s| format!("{}/{}", s.namespace, s.pod))
        .collect();
    let minutes = RECENTLY.as_secs() / 60;
    vec![if quiet.is_empty() {
        Answer::good(NAME, format!("all {} sidecars logged within the last {minutes} min", sidecars.len()))
    } else {
        let text = format!(
            "nothing within {minutes} min from {} of {} sidecars: {}",
            quiet.len(),
            sidecars.len(),
            some(&quiet)
        );
        let fix = "where there was traffic: `istioctl proxy-config listener POD -o json | grep meshdiff` shows whether the setting reached it; \
                   a pod's own Telemetry or annotation may override the mesh's";
        if quiet.len() == sidecars.len() { Answer::bad(NAME, text, fix) } else { Answer::note(NAME, text, fix) }
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar_on(node: &str, pod: &str) -> Sidecar {
        Sidecar { namespace: "default".to_owned(), pod: pod.to_owned(), node: node.to_owned() }
    }

    fn agent_on(node: &str) -> Agent {
        Agent { pod: format!("meshdiff-{node}"), node: node.to_owned(), not_running: None }
    }

    #[test]
    fn nodes_without_an_agent_are_named() {
        let sidecars = Ok([sidecar_on("a", "x"), sidecar_on("b", "y"), sidecar_on("b", "z")].into());
        let answers = coverage(&[agent_on("a")], &sidecars);
        assert!(answers.iter().any(|a| a.status == Status::Bad && a.text.contains("b (2)")), "{answers:?}");
        let answers = coverage(&[agent_on("a"), agent_on("b")], &sidecars);
        assert!(answers.iter().all(|a| a.status == Status::Good), "{answers:?}");
        let none = coverage(&[agent_on("a")], &Ok(BTreeSet::new()));
        assert!(none.iter().any(|a| a.name == "sidecars" && a.status == Status::Bad), "{none:?}");
    }

    #[test]
    fn a_node_is_judged_by_what_it_says() {
        let info = |json| serde_json::from_value::<Info>(json).expect("info");
        let judge = |json| judge_node("node a".to_owned(), &info(json), 1_000_000_000_000, 1_000_500_000_000);
        let version = env!("CARGO_PKG_VERSION");
        let good = judge(serde_json::json!({"version": version, "tier": "tp_btf", "nowNs": 1_000_200_000_000i64}));
        assert_eq!(good.status, Status::Good, "{good:?}");
        let none = judge(serde_json::json!({"version": version, "tier": "none"}));
        assert_eq!(none.status, Status::Bad);
        let late = judge(serde_json::json!({"version": version, "tier": "fentry", "nowNs": 700_000_000_000i64}));
        assert!(late.status == Status::Note && late.text.contains("-300.0 s"), "{late:?}");
        let other = judge(serde_json::json!({"schemaVersion": "meshdiff.capture/v99"}));
        assert!(other.status == Status::Bad && other.text.contains("v99"), "{other:?}");
    }
}
