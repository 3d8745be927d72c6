//! Taking everything away again.

use super::error::RecordError;
use super::interrupts::Interrupts;
use super::run::Run;
use super::say::Say;
use crate::cluster::error::ClusterError;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::Api;
use kube::api::DeleteParams;
use std::future::Future;
use std::time::{Duration, Instant};

/// Agents have nothing to finish: what they recorded is fetched, or given up.
const GRACE_SECONDS: u32 = 1;
/// How long kubelets may take to end them.
const ENDS: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(300);
/// How often something is tried where the API server does not answer.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

impl Run<'_> {
    /// Removes what was started, as far as anything was. A signal ends the waiting, not the removing.
    pub(super) async fn remove(&self, interrupts: &mut Interrupts, say: &Say) -> Result<(), RecordError> {
        if !self.begun {
            return Ok(());
        }
        say.status("removing the agents".to_owned());
        let mut trouble = Vec::new();
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), self.place());
        let params = DeleteParams::default().grace_period(GRACE_SECONDS);
        match stubbornly(|| self.list()).await {
            Ok(there) => {
                let names = there.into_iter().filter_map(|p| p.metadata.name);
                let deleting = names.map(|name| {
                    let (pods, params) = (pods.clone(), &params);
                    async move {
                        let delete = || async {
                            let deleted = pods.delete(&name, params);
                            gone(self.cluster.patiently(deleted, "delete pods", self.place()).await)
                        };
                        stubbornly(delete).await
                    }
                });
                let results = futures::future::join_all(deleting).await;
                trouble.extend(results.into_iter().filter_map(Result::err).map(|e| e.to_string()));
            }
            Err(error) => trouble.push(error.to_string()),
        }
        // With it the rest goes: everything else that was made names it as its owner.
        if let Err(error) = stubbornly(|| self.remove_anchor(&self.identity.name)).await {
            trouble.push(error.to_string());
        }
        if self.namespace_is_ours
            && let Err(error) = stubbornly(|| self.remove_namespace()).await
        {
            trouble.push(error.to_string());
        }
        if trouble.is_empty() {
            trouble.extend(self.wait_for_the_end(interrupts).await.err());
        }
        say.clear();
        if trouble.is_empty() {
            return Ok(());
        }
        // Many nodes have one reason.
        trouble.dedup();
        Err(RecordError::Left { reasons: trouble, remedy: self.remedy() })
    }

    /// Waits until no agent is left; why not, if not.
    async fn wait_for_the_end(&self, interrupts: &mut Interrupts) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let there = match interrupts.unless(self.list()).await {
                Ok(Ok(pods)) if pods.is_empty() => return Ok(()),
                Ok(Ok(pods)) => Ok(pods.into_iter().filter_map(|p| p.metadata.name).collect::<Vec<_>>().join(", ")),
                Ok(Err(error)) => Err(error),
                Err(_) => return Err("their end was not waited for, and was asked for".to_owned()),
            };
            if started.elapsed() > ENDS {
                return Err(match there {
                    Ok(names) => {
                        format!("{names} did not end within {} s; its node may be away", ENDS.as_secs())
                    }
                    Err(error) => error.to_string(),
                });
            }
            if interrupts.wait(LOOK).await.is_err() {
                return Err("their end was not waited for, and was asked for".to_owned());
            }
        }
    }

    /// Removes what a recording's objects hang on.
    pub(super) async fn remove_anchor(&self, name: &str) -> Result<(), ClusterError> {
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), self.place());
        let params = DeleteParams::background();
        gone(self.cluster.patiently(api.delete(name, &params), "delete configmaps", self.place()).await)
    }

    async fn remove_namespace(&self) -> Result<(), ClusterError> {
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        let params = DeleteParams::background();
        gone(self.cluster.patiently(api.delete(self.place(), &params), "delete namespaces", "").await)
    }

    /// What removes everything of this recording, for people.
    fn remedy(&self) -> String {
        if self.namespace_is_ours {
            format!("`{} delete namespace {}`", self.kubectl(), self.place())
        } else {
            self.remedy_for(&self.identity.name)
        }
    }

    /// What removes everything of a recording, for people.
    pub(super) fn remedy_for(&self, name: &str) -> String {
        format!("`{} -n {} delete configmap {name}`", self.kubectl(), self.place())
    }

    fn kubectl(&self) -> String {
        self.cluster.chosen.as_ref().map_or_else(|| "kubectl".to_owned(), |c| format!("kubectl --context {c}"))
    }
}

/// What is not there needs not be removed.
fn gone<T>(deleted: Result<T, ClusterError>) -> Result<(), ClusterError> {
    match deleted {
        Ok(_) | Err(ClusterError::Gone { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Tries again where that may help: nobody comes after this to remove what stays.
async fn stubbornly<T, F: Future<Output = Result<T, ClusterError>>>(
    mut work: impl FnMut() -> F,
) -> Result<T, ClusterError> {
    let mut attempt = 1;
    loop {
        match work().await {
            Err(ClusterError::Unreachable { .. } | ClusterError::Refused { .. }) if attempt < ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}
