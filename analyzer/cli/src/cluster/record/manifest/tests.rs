use super::*;
use serde_json::{Value, json};

fn identity() -> Identity {
    Identity { name: "meshdiff-record-0123456789".to_owned(), token: "t".repeat(64) }
}

fn anchored() -> OwnerReference {
    let mut map = anchor(&identity(), &options(), &["node-a".to_owned()]);
    map.metadata.uid = Some("uid-of-the-anchor".to_owned());
    owner(&map)
}

fn options() -> Options {
    Options {
        namespace: Some("shop".to_owned()),
        duration: Duration::from_secs(60),
        start_within: Duration::from_secs(120),
        ..Options::for_tests()
    }
}

fn made(options: &Options) -> Value {
    serde_json::to_value(pod(&identity(), &anchored(), options, 3, "node-a")).expect("JSON")
}

/// Everything of the DaemonSet's pods holds for short-lived ones but what is listed here.
#[test]
fn a_short_lived_agent_is_that_of_the_daemon_set() {
    let template: Value =
        serde_json::to_value(parsed::<DaemonSet>(DAEMON_SET).spec.expect("a spec").template).expect("JSON");
    let mut pod = made(&options());
    let mut expected = template;
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/component"], "agent");
    for (key, value) in expected["metadata"]["labels"].as_object().expect("labels") {
        assert_eq!(&pod["metadata"]["labels"][key], value, "{key}");
    }
    // What differs is looked at by itself, and then left out on both sides.
    let spec = &pod["spec"];
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(spec["activeDeadlineSeconds"], 120 + 60 + 600);
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["volumes"][0], json!({"name": "window", "emptyDir": {}}));
    assert_eq!(spec["volumes"][1]["secret"]["secretName"], "meshdiff-record-0123456789");
    let term =
        &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0];
    assert_eq!(term["matchFields"][0], json!({"key": "metadata.name", "operator": "In", "values": ["node-a"]}));
    let args: Vec<&str> =
        spec["containers"][0]["args"].as_array().expect("arguments").iter().filter_map(Value::as_str).collect();
    assert_eq!(
        args,
        ["agent", "--log-format=json", "--keep-bytes=1GiB", "--keep=840s", "--no-kube", "--namespace=shop"]
    );
    for object in [&mut pod, &mut expected] {
        let spec = object["spec"].as_object_mut().expect("a spec");
        for key in [
            "restartPolicy",
            "activeDeadlineSeconds",
            "automountServiceAccountToken",
            "serviceAccountName",
            "affinity",
            "volumes",
        ] {
            spec.remove(key);
        }
        let container = spec["containers"][0].as_object_mut().expect("a container");
        for key in ["args", "livenessProbe", "terminationMessagePolicy"] {
            container.remove(key);
        }
    }
    assert_eq!(pod["spec"], expected["spec"]);
}

/// Their arguments are understood by this very program.
#[test]
fn the_agent_understands_its_arguments() {
    use crate::args::{Cli, Command};
    use clap::Parser;
    for probes in [true, false] {
        let redact_paths = probes;
        let options = Options { probes, redact_paths, ring_size: Some(32), tls_uprobes: TlsUprobes::File, ..options() };
        let pod = pod(&identity(), &anchored(), &options, 0, "node-a");
        let args = pod.spec.expect("a spec").containers.remove(0).args.expect("arguments");
        let cli = Cli::try_parse_from(std::iter::once("meshdiff".to_owned()).chain(args)).expect("understood");
        let Command::Agent(agent) = cli.command else { panic!("another command") };
        let agent = crate::agent::AgentOptions::try_from(*agent).unwrap_or_else(|_| panic!("refused"));
        assert_eq!((agent.record.probes, agent.record.ring_bytes, agent.kube), (probes, 32 << 20, false));
        assert_eq!(agent.record.redact_paths, redact_paths);
    }
}

#[test]
fn everything_hangs_on_the_anchor() {
    let owner = anchored();
    let references = |meta: &ObjectMeta| meta.owner_references.clone();
    let all = [
        references(&pod(&identity(), &owner, &options(), 0, "n").metadata),
        references(&secret(&identity(), &owner).metadata),
        references(&service(&identity(), &owner).metadata),
    ];
    for reference in all {
        assert_eq!(reference, Some(vec![owner.clone()]));
    }
    assert!(owner.uid == "uid-of-the-anchor" && owner.controller == Some(true));
}

#[test]
fn the_service_and_the_namespace_are_those_of_deploy() {
    let service = serde_json::to_value(service(&identity(), &anchored())).expect("JSON");
    assert_eq!(service["metadata"]["name"], "grpc-als");
    assert_eq!(service["spec"]["internalTrafficPolicy"], "Local");
    let selector = service["spec"]["selector"].as_object().expect("a selector");
    let pod = made(&options());
    for (key, value) in selector {
        assert_eq!(&pod["metadata"]["labels"][key], value, "{key}");
    }
    let namespace = serde_json::to_value(namespace("elsewhere")).expect("JSON");
    assert_eq!(namespace["metadata"]["name"], "elsewhere");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
}

#[test]
fn without_probes_an_agent_asks_for_nothing() {
    let pod = made(&Options { probes: false, image: Some("registry.example/m:2".to_owned()), ..options() });
    let (spec, context) = (&pod["spec"], &pod["spec"]["containers"][0]["securityContext"]);
    assert_eq!(spec["hostPID"], Value::Null);
    assert_eq!((&context["runAsNonRoot"], &context["capabilities"]), (&json!(true), &json!({"drop": ["ALL"]})));
    assert_eq!(context["appArmorProfile"], Value::Null);
    assert_eq!(spec["containers"][0]["image"], "registry.example/m:2");
}

#[test]
fn the_manifests_image_is_of_this_version() {
    let spec = parsed::<DaemonSet>(DAEMON_SET).spec.expect("a spec").template.spec;
    assert!(image(spec.as_ref()).ends_with(concat!(":", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn identities_differ_and_are_names() {
    let (a, b) = (Identity::random().expect("randomness"), Identity::random().expect("randomness"));
    assert!(a.name != b.name && a.token != b.token && a.token.len() == 64);
    assert!(crate::cluster::is_name(&a.name) && a.name.len() < 60);
}
