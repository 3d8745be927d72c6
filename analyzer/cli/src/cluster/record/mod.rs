//! `record -n NS`: a recording of a cluster. Where no agents are installed, short-lived ones are started for it, and removed again.
//!
//! What is put into the cluster hangs on one ConfigMap, by owner references: a token, the Service to which sidecars log (if there is none), and
//! a pod on each node that has sidecars. The pods end by themselves after the recording and some minutes, also if this program is killed; then
//! the ConfigMap and what hangs on it are left, and removed by the next recording.

mod error;
mod folder;
mod interrupts;
mod manifest;
mod options;
mod remove;
mod run;
mod say;
mod state;

pub(crate) use folder::{Recorded, nodes_of, recorded};
pub(super) use manifest::{MANAGED_BY, MANAGER};

use super::agents::{self, Agent};
use super::connect::Cluster;
use super::error::{ClusterError, sentence};
use super::fetch::{self, Fetched, Question};
use super::sidecars::{Sidecar, sidecars};
use super::{istio, target};
use crate::args::RecordArgs;
use crate::check::Status;
use crate::exit::Failure;
use crate::record::DRAIN;
use anyhow::Context;
use error::RecordError;
use folder::{About, Output};
use futures::FutureExt;
use http::HeaderValue;
use interrupts::Interrupts;
use meshdiff_capture::{Capture, Table};
use options::Options;
use run::Run;
use say::{Say, seconds};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// How often the recording's progress is shown, and how often agents are looked after.
const SHOW: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_secs(3);

/// `meshdiff record`, of a cluster.
pub(crate) fn record(args: &RecordArgs) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    let result = runtime.block_on(session(args));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn session(args: &RecordArgs) -> Result<(), Failure> {
    let mut interrupts = Interrupts::new()?;
    let early = |_| RecordError::EndedEarly;
    let cluster = interrupts.unless(Cluster::connect(&args.in_cluster.cluster)).await.map_err(early)??;
    let options = Options::of(args, &cluster.namespace)?;
    let output = Output::create(&options.output, options.force)?;
    let say = Say::new(options.quiet);
    let mut session = Session { cluster: &cluster, options: &options, say: &say, interrupts, notes: Vec::new() };
    let chosen = session.look().await?;
    let installed = session.installed().await?;
    let fetched = if installed.is_empty() {
        session.with_short_lived(chosen, output).await?
    } else {
        let token = agents::token(&cluster, &args.in_cluster.cluster).await?;
        session.with_installed(installed, token, output).await?
    };
    session.summary(&fetched);
    Ok(())
}

/// A recording that is being made.
struct Session<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    say: &'a Say,
    interrupts: Interrupts,
    /// What limits the recording, in sentences.
    notes: Vec<String>,
}

/// What is fetched, and how long all had recorded then.
struct Taken {
    captures: Vec<Fetched>,
    recorded: Duration,
}

impl Session<'_> {
    /// Finds the nodes that have chosen pods, and says what will be missing.
    async fn look(&mut self) -> Result<BTreeSet<String>, Failure> {
        let (cluster, options) = (self.cluster, self.options);
        let looking = async {
            let all = sidecars(cluster, options.namespace.as_deref()).await?;
            let chosen = chosen(cluster, options, &all).await?;
            let settings = istio::look(cluster, &options.istio_namespace).await;
            Ok::<_, ClusterError>((all, chosen, settings))
        };
        let (all, chosen, settings) = self.interrupts.unless(looking).await.map_err(|_| RecordError::EndedEarly)??;
        if chosen.is_empty() {
            return Err(Failure::TooLittleData(format!(
                "no running pod of {} has a sidecar: there is nothing to record. Label the namespace for injection and restart its pods, or choose another",
                options.what()
            )));
        }
        for answer in settings.iter().filter(|a| a.status != Status::Good) {
            let fix = answer.fix.as_deref().map(|f| format!(" ({f})")).unwrap_or_default();
            let text = format!("{}: {}{fix}", answer.name, answer.text);
            if answer.status == Status::Bad {
                let text = format!("{text}. Without access logs only connections are known, and no request is split");
                self.say.warning(&text);
                self.notes.push(text);
            } else {
                self.say.line(&format!("Note: {text}."));
            }
        }
        let nodes: BTreeSet<String> = chosen.iter().map(|s| s.node.clone()).collect();
        let elsewhere: BTreeSet<&str> = all.iter().map(|s| s.node.as_str()).filter(|n| !nodes.contains(*n)).collect();
        if !elsewhere.is_empty() {
            self.note(format!(
                "{} more nodes have sidecars of the namespace: requests to and from there are known by half, choose the whole namespace for both",
                elsewhere.len()
            ));
        }
        Ok(nodes)
    }

    fn note(&mut self, text: String) {
        self.say.warning(&text);
        self.notes.push(text);
    }

    /// The agents that are there for good.
    async fn installed(&mut self) -> Result<Vec<Agent>, Failure> {
        let found = self.interrupts.unless(agents::find(self.cluster)).await.map_err(|_| RecordError::EndedEarly)?;
        match found {
            // Where agents are started, the right to look for them is asked for with the others.
            Err(ClusterError::Forbidden { .. }) => Ok(Vec::new()),
            found => Ok(found?),
        }
    }

    async fn with_installed(
        &mut self,
        agents: Vec<Agent>,
        token: HeaderValue,
        output: Output,
    ) -> Result<Vec<Fetched>, Failure> {
        let running = agents.iter().filter(|a| a.not_running.is_none()).count();
        self.say.line(&format!(
            "Agents are installed in the namespace {}: {running} of {} run. They are used, and nothing is started.",
            self.cluster.agent_namespace,
            agents.len()
        ));
        if running == 0 {
            let why = |a: &Agent| format!("{}: {}", a.node, a.not_running.as_deref().unwrap_or_default());
            return Err(RecordError::NoneReady(agents.iter().map(why).collect()).into());
        }
        if self.options.redact_paths {
            return Err(Failure::Usage(
                "--redact-paths: the agents that are installed decide what they keep. Let them run with it (agent.redactPaths in the Helm chart)"
                    .to_owned(),
            ));
        }
        if let Some(namespace) = &self.options.namespace {
            let notes = agents::nodes_without(self.cluster, namespace, &agents).await;
            self.notes.extend(notes);
        }
        let taken = self.take(agents, &token, &output, None).await?;
        self.finish(taken, output)
    }

    async fn with_short_lived(&mut self, nodes: BTreeSet<String>, output: Output) -> Result<Vec<Fetched>, Failure> {
        let nodes: Vec<String> = nodes.into_iter().collect();
        let mut run = Run::new(self.cluster, self.options, nodes)?;
        // Whatever comes of it, a defect of ours included, what was started is removed.
        let outcome = AssertUnwindSafe(self.short_lived(&mut run, output)).catch_unwind().await;
        self.say.clear();
        let removed = run.remove(&mut self.interrupts, self.say).await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(panic) => {
                removed.err().iter().for_each(|left| self.say.warning(&left.to_string()));
                std::panic::resume_unwind(panic)
            }
        };
        match (outcome, removed) {
            (Ok(fetched), Ok(())) => {
                self.say.line("The agents are removed.");
                Ok(fetched)
            }
            (Ok(fetched), Err(left)) => {
                self.summary(&fetched);
                Err(left.into())
            }
            (Err(failure), Ok(())) => Err(failure),
            (Err(failure), Err(left)) => {
                self.say.warning(&left.to_string());
                Err(failure)
            }
        }
    }

    async fn short_lived(&mut self, run: &mut Run<'_>, output: Output) -> Result<Vec<Fetched>, Failure> {
        run.start(&mut self.interrupts, self.say).await?;
        let (agents, failed) = run.ready(&mut self.interrupts, self.say).await?;
        self.say.clear();
        failed.into_iter().for_each(|why| self.note(why));
        let mut token = HeaderValue::from_str(&run.identity.token).context("the token of this recording")?;
        token.set_sensitive(true);
        let taken = self.take(agents, &token, &output, Some(run)).await?;
        self.finish(taken, output)
    }

    /// Lets agents record, and fetches what they have of the time.
    async fn take(
        &mut self,
        mut agents: Vec<Agent>,
        token: &HeaderValue,
        output: &Output,
        run: Option<&Run<'_>>,
    ) -> Result<Taken, Failure> {
        let running = agents.iter().filter(|a| a.not_running.is_none()).count();
        self.say.line(&format!(
            "Recording {} for {}, with agents on {running} nodes (Ctrl-C: not any longer).",
            self.options.what(),
            seconds(self.options.duration)
        ));
        let began = Instant::now();
        self.let_record(began, &mut agents, run).await;
        self.say.line("Waiting 3 s for the access logs that Envoy still holds (Ctrl-C: not any longer).");
        // A second signal ends the waiting; what there is then is fetched.
        let _: Result<(), _> = self.interrupts.wait(DRAIN).await;
        self.say.clear();
        let recorded = began.elapsed();
        let folder = output.incoming();
        let question = Question { namespace: self.options.namespace.as_deref(), since: recorded };
        let fetching = fetch::all(self.cluster, &agents, token, &question, &folder);
        let fetched = self.interrupts.unless(fetching).await.map_err(|_| RecordError::EndedInFetching)??;
        fetched.notes.into_iter().for_each(|note| self.note(note));
        if run.is_some() {
            self.who_came_later(&agents).await;
        }
        Ok(Taken { captures: fetched.captures, recorded })
    }

    /// Until the time is over, a signal comes, or nobody records any more.
    async fn let_record(&mut self, began: Instant, agents: &mut [Agent], run: Option<&Run<'_>>) {
        let end = began + self.options.duration;
        let mut next_look = began + LOOK;
        while Instant::now() < end {
            let (so_far, of) = (seconds(began.elapsed()), seconds(self.options.duration));
            self.say.status(format!("{so_far} of {of}"));
            let pause = SHOW.min(end.saturating_duration_since(Instant::now()));
            if self.interrupts.wait(pause).await.is_err() {
                return;
            }
            if let Some(run) = run.filter(|_| Instant::now() >= next_look) {
                next_look = Instant::now() + LOOK;
                let Ok(news) = self.interrupts.unless(run.lost(agents)).await else { return };
                news.iter().for_each(|text| self.say.warning(text));
                if agents.iter().all(|a| a.not_running.is_some()) {
                    return;
                }
            }
        }
    }

    /// Pods that came while it was recorded may be on nodes that have no agent.
    async fn who_came_later(&mut self, agents: &[Agent]) {
        let looking = async {
            let all = sidecars(self.cluster, self.options.namespace.as_deref()).await?;
            chosen(self.cluster, self.options, &all).await
        };
        // That it is not known is worth no word: nothing is wrong with what was recorded.
        let Ok(Ok(now)) = self.interrupts.unless(looking).await else { return };
        let without = now.iter().filter(|s| !agents.iter().any(|a| a.node == s.node));
        let nodes: BTreeSet<String> = without.map(|s| s.node.clone()).collect();
        let known = |node: &String| self.notes.iter().any(|n| n.contains(&format!("node {node}:")));
        let new: Vec<&str> = nodes.iter().filter(|n| !known(n)).map(String::as_str).collect();
        if !new.is_empty() {
            let text = format!("pods with sidecars came to nodes that were not recorded: {}", new.join(", "));
            self.note(text);
        }
    }

    fn finish(&mut self, taken: Taken, output: Output) -> Result<Vec<Fetched>, Failure> {
        let notes = self.notes.iter().map(|n| sentence(n)).collect();
        let about = About::new(&self.cluster.name, self.options.namespace.as_deref(), taken.recorded, notes);
        output.finish(&taken.captures, about)?;
        let place = |f: Fetched| Fetched { folder: self.options.output.join(&f.node), node: f.node };
        Ok(taken.captures.into_iter().map(place).collect())
    }

    /// What was recorded, and what to do with it.
    fn summary(&self, captures: &[Fetched]) {
        let (mut messages, mut entries, mut lost) = (0, 0, 0);
        for meta in captures.iter().filter_map(|c| Capture::open(&c.folder).ok()).map(|c| c.meta().clone()) {
            let rows = |table: Table| meta.tables.get(&table).map_or(0, |t| t.rows);
            messages += rows(Table::Messages);
            entries += rows(Table::AccessLogs);
            lost += meta.probes.stats.lost_events;
        }
        self.say.line(&format!(
            "Recorded {messages} messages and {entries} access log entries on {} nodes; {lost} kernel events lost.",
            captures.len()
        ));
        if entries == 0 {
            self.say.line(
                "No access log entry arrived: was there traffic, and do the sidecars log to the Service grpc-als? `meshdiff check --cluster` says more.",
            );
        }
        self.say.line(&format!("Next: meshdiff report --capture {}", self.options.output.display()));
    }
}

/// Those of the namespace's sidecars that were chosen.
async fn chosen(
    cluster: &Cluster,
    options: &Options,
    all: &BTreeSet<Sidecar>,
) -> Result<BTreeSet<Sidecar>, ClusterError> {
    let Some(namespace) = options.namespace.as_deref().filter(|_| !options.scopes.is_empty()) else {
        let all = all.iter().filter(|s| options.namespace.is_some() || s.namespace != "kube-system");
        return Ok(all.cloned().collect());
    };
    let mut found = BTreeSet::new();
    for scope in &options.scopes {
        let filter = target::resolve(cluster, namespace, scope).await?;
        found.extend(all.iter().filter(|s| filter.has_pod(&s.pod)).cloned());
    }
    Ok(found)
}
