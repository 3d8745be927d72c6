//! How far an agent is that was started, by what its pod says.

use super::manifest::image;
use crate::cluster::error::sentence;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

/// Where an agent is in its short life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It records.
    Ready,
    /// Not yet, and on what it waits.
    Starting(String),
    /// Its node does not take it, and why; that may pass.
    NoRoom(String),
    /// It will not, or no longer.
    Failed(String),
}

/// What kubelets say of an image that will not come by itself.
const NO_IMAGE: [&str; 3] = ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"];

/// What a pod's status means.
pub(super) fn state(pod: &Pod) -> State {
    let Some(status) = &pod.status else { return State::Starting("nobody has looked at its pod yet".to_owned()) };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let is = |name: &str, value: &str| conditions.iter().find(|c| c.type_ == name && c.status == value);
    let container = status.container_statuses.iter().flatten().next();
    match status.phase.as_deref() {
        Some("Failed") => return State::Failed(failed(pod, container)),
        Some("Succeeded") => return State::Failed("it has ended by itself".to_owned()),
        _ => {}
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return State::Failed("somebody deleted its pod".to_owned());
    }
    if is("Ready", "True").is_some() {
        return State::Ready;
    }
    if let Some(refused) = is("PodScheduled", "False") {
        return State::NoRoom(format!("no room on its node ({})", words(refused)));
    }
    let waiting = container.and_then(|c| c.state.as_ref()?.waiting.as_ref());
    let Some(waiting) = waiting else {
        let text =
            if status.phase.as_deref() == Some("Running") { "it is not ready yet" } else { "its pod is Pending" };
        return State::Starting(text.to_owned());
    };
    let reason = waiting.reason.as_deref().unwrap_or("no reason given");
    let why = waiting.message.as_deref().map(|m| format!(": {}", sentence(m))).unwrap_or_default();
    if NO_IMAGE.contains(&reason) {
        let image = image(pod.spec.as_ref());
        return State::Failed(format!(
            "the image {image} cannot be had ({reason}{why}): name one that its node can pull with --image"
        ));
    }
    State::Starting(format!("its container waits ({reason}{why})"))
}

fn words(condition: &PodCondition) -> String {
    let words = condition.message.as_deref().or(condition.reason.as_deref());
    sentence(words.unwrap_or("no reason given"))
}

/// Why a pod has failed: what was done to it, or how its agent ended.
fn failed(pod: &Pod, container: Option<&ContainerStatus>) -> String {
    let status = pod.status.as_ref();
    let reason = status.and_then(|s| s.reason.as_deref());
    let message = status.and_then(|s| s.message.as_deref()).map(|m| format!(": {}", sentence(m))).unwrap_or_default();
    if let Some(reason) = reason {
        return format!("its node ended it ({reason}{message})");
    }
    let Some(ended) = container.and_then(|c| c.state.as_ref()?.terminated.as_ref()) else {
        return format!("its pod has failed{message}");
    };
    let how = ended.reason.as_deref().unwrap_or("Error");
    // The end of its log: the last line is the one that says why.
    let last = ended.message.as_deref().and_then(|m| m.lines().rev().find(|l| !l.trim().is_empty()));
    let last = last.map(|l| format!(": {}", sentence(l))).unwrap_or_default();
    format!("it ended with the exit code {} ({how}{last})", ended.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(status: Value) -> State {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "agent", "image": "r/m:1"}]}, "status": status});
        state(&serde_json::from_value(pod).expect("a pod"))
    }

    fn container(state: Value) -> Value {
        json!({"name": "agent", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state})
    }

    #[test]
    fn what_kubelets_and_schedulers_say_is_understood() {
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(of(ready), State::Ready);
        let not_yet = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]});
        assert_eq!(of(not_yet), State::Starting("it is not ready yet".to_owned()));
        let full = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 1 Insufficient cpu."}]});
        assert_eq!(
            of(full),
            State::NoRoom("no room on its node (0/3 nodes are available: 1 Insufficient cpu)".to_owned())
        );
        let waits = |reason: &str, message: &str| {
            of(json!({"phase": "Pending",
            "containerStatuses": [container(json!({"waiting": {"reason": reason, "message": message}}))]}))
        };
        assert!(matches!(waits("ErrImagePull", "once"), State::Starting(_)));
        let State::Failed(why) = waits("ImagePullBackOff", "not\nfound") else { panic!("it goes on") };
        assert!(why.contains("r/m:1") && why.contains("--image") && why.contains("not found"), "{why}");
    }

    #[test]
    fn the_end_of_an_agent_is_told() {
        let crashed = json!({"phase": "Failed", "containerStatuses": [container(json!({"terminated": {"exitCode": 1, "reason": "Error",
            "message": "{\"level\":\"INFO\"}\nmeshdiff: no kind of probes can be loaded\n"}}))]});
        assert_eq!(
            of(crashed),
            State::Failed(
                "it ended with the exit code 1 (Error: meshdiff: no kind of probes can be loaded)".to_owned()
            )
        );
        let late = json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"});
        let State::Failed(why) = of(late) else { panic!("it goes on") };
        assert!(why.contains("DeadlineExceeded"), "{why}");
        assert!(matches!(of(json!({"phase": "Succeeded"})), State::Failed(_)));
        assert!(matches!(of(json!({})), State::Starting(_)));
    }
}
