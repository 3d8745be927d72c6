//! Bringing a lab up, saying what it is, and taking it down without a trace.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bootstrap::{Identity, PROXY_UID, bootstrap};
use crate::certs::Authority;
use crate::cgroup::CpuController;
use crate::client::Pool;
use crate::clock::MonotonicNs;
use crate::error::LabError;
use crate::forward::End;
use crate::hop::{Bytes, Caller, Context};
use crate::logbook::Logbook;
use crate::network::{self, FABRIC};
use crate::process::{Launch, Process, Role, launch, terminate};
use crate::protocols::cases::{self, Place};
use crate::protocols::drive;
use crate::settings::{LabName, NetDelay, Settings, SettingsError};
use crate::state::{Lock, Phase, State, StateDir};
use crate::topology::{LOADGEN, Pod, Proxy, Serves, Topology};
use crate::{nat, netns, ready};

/// The uid of the applications: anybody but the sidecar.
pub const APP_UID: u32 = 10_001;

/// The case under which servers log the exchanges that `up` checks the mesh with.
const CHECK: &str = "check";

/// What `up` had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// The lab was up with these settings already, and nothing was touched.
    AlreadyUp,
    /// There was none.
    Created,
    /// There was one with other settings, or a broken one: it was taken down first.
    Recreated,
}

/// Brings a lab up and waits until every part of it answers. If that fails, nothing of it stays.
///
/// `binary` is meshdiff-lab's own, which the applications run.
///
/// # Errors
/// In words that say what to do.
pub fn up(settings: &Settings, binary: &Path, progress: &dyn Fn(&str)) -> Result<(State, Raised), LabError> {
    settings.check()?;
    let envoy_version = preflight(settings)?;
    let _lock = Lock::lab(&settings.name)?;
    let dir = StateDir::of(&settings.name);
    let before = dir.load()?;
    if let Some(state) = before.filter(|state| state.settings == *settings && state.is_whole()) {
        return Ok((state, Raised::AlreadyUp));
    }
    settings.out.as_deref().map_or(Ok(()), check_out)?;
    let leftovers = remove(&settings.name, false)?;
    if leftovers {
        progress("removed what was there under this name");
    }
    network::check_subnet(settings)?;
    let raised = if leftovers { Raised::Recreated } else { Raised::Created };
    let result = create(settings, binary, &dir, envoy_version, progress);
    match result {
        Ok(state) => Ok((state, raised)),
        Err(error) => {
            if let Err(second) = remove(&settings.name, true) {
                progress(&format!("taking the half-made lab down failed too: {second}"));
            }
            Err(error)
        }
    }
}

/// Everything that can be known before anything is touched. The result is Envoy's version.
fn preflight(settings: &Settings) -> Result<String, LabError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    for (command, package) in [("ip", "iproute2"), ("iptables-restore", "iptables")] {
        if !on_path(command) {
            return Err(LabError::MissingTool { command, package });
        }
    }
    if !settings.envoy.is_file() {
        return Err(LabError::NoEnvoy(settings.envoy.clone()));
    }
    if !settings.starved.is_empty() && CpuController::find().is_none() {
        return Err(LabError::Unsupported {
            feature: "the cgroup cpu controller".into(),
            needed_by: "--starve",
            fix: "mount cgroup v2 (or v1 with cpu), or leave the option out",
        });
    }
    if !settings.net_delays.is_empty() && !Path::new("/dev/net/tun").exists() {
        return Err(LabError::Unsupported {
            feature: "/dev/net/tun".into(),
            needed_by: "--net-delay",
            fix: "load the module (modprobe tun), or leave the option out",
        });
    }
    let broken = |why: String| LabError::BrokenEnvoy { path: settings.envoy.clone(), why };
    let program = settings.envoy.to_string_lossy();
    let version = netns::run(&program, &["--version"], None).map_err(|error| broken(error.to_string()))?;
    let version =
        version.split("version:").nth(1).map(str::trim).ok_or_else(|| broken("it tells no version".into()))?;
    Ok(version.to_owned())
}

/// Logs of two runs in one folder could not be told apart.
fn check_out(out: &Path) -> Result<(), LabError> {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    let logs = entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|e| e == "ndjson"));
    if logs { Err(LabError::LogsTaken(out.to_owned())) } else { Ok(()) }
}

fn on_path(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.iter().any(|folder| folder.join(command).exists())
}

fn create(
    settings: &Settings,
    binary: &Path,
    dir: &StateDir,
    envoy_version: String,
    progress: &dyn Fn(&str),
) -> Result<State, LabError> {
    let topology = Topology::of(settings);
    let logs = settings.out.clone().unwrap_or_else(|| dir.logs());
    make_folders(dir, &logs, &topology)?;
    let mut state = State {
        settings: settings.clone(),
        phase: Phase::Starting,
        processes: Vec::new(),
        congestion_control: String::new(),
        nat: String::new(),
        envoy_version,
        logs,
    };
    dir.store(&state)?;

    progress(&format!("{} pods on {}", topology.pods.len(), settings.subnet));
    network::create(settings, &topology)?;
    state.congestion_control = network::set_congestion_control(settings, &topology)?;
    for pod in &topology.pods {
        if let Some(flavour) = nat::apply(&settings.name.namespace(&pod.workload), pod)? {
            state.nat = flavour.to_owned();
        }
    }

    let starter = Starter { settings, binary, dir, logs: &state.logs.clone(), topology: &topology };
    for (i, link) in settings.net_delays.iter().enumerate() {
        state.processes.push(starter.link(i, link)?);
    }
    let authority = Authority::new()?;
    for pod in &topology.pods {
        match pod.serves {
            Serves::Nothing => {}
            Serves::Bookinfo => state.processes.push(starter.app(pod)?),
            Serves::Protocols => state.processes.push(starter.protocols(pod, &authority)?),
        }
        if pod.proxy != Proxy::None {
            if settings.ext_authz {
                state.processes.push(starter.authz(pod)?);
            }
            state.processes.push(starter.envoy(pod, &authority)?);
        }
        dir.store(&state)?;
    }
    let controller = if settings.starved.is_empty() { None } else { CpuController::find() };
    wait(settings, &topology, dir)?;
    // Starved only now: a sidecar that is starved from the first instruction takes long to start, and that is not what
    // is to be studied.
    for starve in &settings.starved {
        let envoy = state.processes.iter().find(|p| p.role == Role::Envoy && p.pod == starve.pod);
        if let (Some(controller), Some(envoy)) = (&controller, envoy) {
            controller.starve(&settings.name, &starve.pod, starve.percent, envoy.pid)?;
        }
    }
    if let Some(dead) = state.processes.iter().find(|process| !process.is_alive()) {
        return Err(LabError::NotReady {
            what: format!("the {:?} of {}", dead.role, dead.pod),
            seconds: 0,
            why: format!("it ended; see the logs in {}", state.logs.display()),
        });
    }
    first_request(settings, &topology, &state.logs)?;
    first_exchanges(settings)?;
    state.phase = Phase::Up;
    dir.store(&state)?;
    Ok(state)
}

fn make_folders(dir: &StateDir, logs: &Path, topology: &Topology) -> Result<(), LabError> {
    let make = |path: &Path| {
        std::fs::create_dir_all(path).map_err(LabError::io(format!("the folder {} cannot be made", path.display())))
    };
    // What a failed or taken-down lab left for reading goes now.
    dir.remove(false)?;
    make(dir.path())?;
    make(logs)?;
    topology.pods.iter().try_for_each(|pod| make(&dir.envoy(&pod.workload)))
}

struct Starter<'a> {
    settings: &'a Settings,
    binary: &'a Path,
    dir: &'a StateDir,
    logs: &'a Path,
    topology: &'a Topology,
}

impl Starter<'_> {
    /// One of meshdiff-lab's own commands. It starts as root, opens its log and its socket, and drops root itself.
    fn own(
        &self,
        namespace: &str,
        role: Role,
        pod: &str,
        name: &str,
        arguments: Vec<OsString>,
    ) -> Result<Process, LabError> {
        let output = self.logs.join(format!("{name}.stderr"));
        let stand_in = self.dir.path().join("unused");
        let what = Launch {
            namespace,
            program: self.binary,
            arguments,
            uid: None,
            gid: None,
            output: &output,
            stand_in: &stand_in,
        };
        launch(&what, role, pod)
    }

    fn common(&self, command: &str, pod: &Pod, log: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["internal".into(), command.into()];
        arguments.extend(["--workload".into(), pod.workload.clone().into()]);
        arguments.extend(["--service".into(), pod.app.into(), "--uid".into(), APP_UID.to_string().into()]);
        arguments.extend(["--log".into(), self.logs.join(log).into()]);
        arguments
    }

    fn app(&self, pod: &Pod) -> Result<Process, LabError> {
        let name = format!("{}.app", pod.workload);
        let mut arguments = self.common("app", pod, &format!("{name}.ndjson"));
        for to in self.topology.destinations(pod) {
            arguments.push("--call".into());
            arguments.push(format!("{}@{}{}", to.host, to.address, to.path).into());
        }
        if self.settings.parallel {
            arguments.push("--parallel".into());
        }
        self.own(&self.settings.name.namespace(&pod.workload), Role::App, &pod.workload, &name, arguments)
    }

    /// The application of the protocol workloads, with a certificate of its own for the TLS that it does itself.
    fn protocols(&self, pod: &Pod, authority: &Authority) -> Result<Process, LabError> {
        let name = format!("{}.app", pod.workload);
        let certificates = self.dir.path().join("app").join(&pod.workload);
        std::fs::create_dir_all(&certificates)
            .map_err(LabError::io(format!("the folder {} cannot be made", certificates.display())))?;
        authority.issue(&format!("{}-app", pod.spiffe_id()), &certificates)?;
        let mut arguments = self.common("protocols", pod, &format!("{name}.ndjson"));
        let workloads: Vec<_> = self.settings.workloads.iter().map(|workload| workload.name()).collect();
        arguments.extend(["--workloads".into(), workloads.join(",").into()]);
        arguments.extend(["--certificates".into(), certificates.into_os_string()]);
        if pod.ip6.is_some() {
            arguments.push("--dual-stack".into());
        }
        self.own(&self.settings.name.namespace(&pod.workload), Role::App, &pod.workload, &name, arguments)
    }

    fn authz(&self, pod: &Pod) -> Result<Process, LabError> {
        let name = format!("{}.authz", pod.workload);
        let arguments = self.common("authz", pod, &format!("{name}.ndjson"));
        self.own(&self.settings.name.namespace(&pod.workload), Role::Authz, &pod.workload, &name, arguments)
    }

    fn link(&self, i: usize, link: &NetDelay) -> Result<Process, LabError> {
        let name = link_name(link);
        let [from, to] = ends(self.settings, self.topology, i, link);
        let mut arguments: Vec<OsString> = vec!["internal".into(), "link".into()];
        for end in [&from, &to] {
            arguments.push("--end".into());
            arguments.push(format!("{},{},{}", end.namespace, end.ip, end.device).into());
        }
        arguments.extend(["--delay-ns".into(), link.one_way_ns.to_string().into()]);
        arguments.extend(["--loss-percent".into(), link.loss_percent.to_string().into()]);
        arguments.extend(["--log".into(), self.logs.join(format!("{name}.ndjson")).into()]);
        // In the fabric's namespace, so that taking the lab down finds it there even without a state.
        self.own(&self.settings.name.namespace(FABRIC), Role::Link, &name, &name, arguments)
    }

    fn envoy(&self, pod: &Pod, authority: &Authority) -> Result<Process, LabError> {
        let folder = self.dir.envoy(&pod.workload);
        authority.issue(&pod.spiffe_id(), &folder)?;
        let [certificate, key, root] = ["cert-chain.pem", "key.pem", "root-cert.pem"].map(|file| folder.join(file));
        let identity = Identity { certificate: &certificate, key: &key, root: &root };
        let config = bootstrap(self.settings, self.topology, pod, identity);
        let file = folder.join("bootstrap.json");
        let failed = || LabError::io(format!("{} cannot be written", folder.display()));
        std::fs::write(&file, format!("{config:#}\n")).map_err(failed())?;
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed())?;
        for path in [&folder, &certificate, &key, &root, &file] {
            chown(path, Some(PROXY_UID), Some(PROXY_UID)).map_err(failed())?;
        }
        let concurrency = self.settings.concurrency.to_string();
        let arguments = ["--config-path".into(), file.into_os_string()].into_iter().chain(
            ["--concurrency", &concurrency, "--disable-hot-restart", "--log-level", "warning", "--drain-time-s", "1"]
                .map(OsString::from),
        );
        let what = Launch {
            namespace: &self.settings.name.namespace(&pod.workload),
            program: &self.settings.envoy,
            arguments: arguments.collect(),
            // Transparent sockets need CAP_NET_ADMIN: Istio runs such a sidecar as root, in the proxy's group.
            uid: (pod.proxy != Proxy::Tproxy).then_some(PROXY_UID),
            gid: (pod.proxy == Proxy::Tproxy).then_some(PROXY_UID),
            output: &self.logs.join(format!("{}.envoy.log", pod.workload)),
            stand_in: &folder.join("envoy"),
        };
        launch(&what, Role::Envoy, &pod.workload)
    }
}

fn link_name(link: &NetDelay) -> String {
    format!("{}--{}.link", link.from, link.to)
}

fn ends(settings: &Settings, topology: &Topology, i: usize, link: &NetDelay) -> [End; 2] {
    [&link.from, &link.to].map(|workload| End {
        namespace: settings.name.namespace(workload),
        // `Settings::check` has made sure that the pod exists.
        ip: topology.pod(workload).map_or(settings.subnet.gateway(), |pod| pod.ip),
        device: format!("held{i}"),
    })
}

fn wait(settings: &Settings, topology: &Topology, dir: &StateDir) -> Result<(), LabError> {
    let deadline = MonotonicNs::now().plus(ready::DEADLINE);
    for pod in &topology.pods {
        let namespace = settings.name.namespace(&pod.workload);
        let log = settings.out.clone().unwrap_or_else(|| dir.logs()).join(format!("{}.envoy.log", pod.workload));
        if pod.proxy != Proxy::None {
            ready::envoy(&namespace, deadline).map_err(|error| with_log(error, &log))?;
        }
        if pod.serves != Serves::Nothing {
            ready::application(&namespace, pod.ip, &topology.ports(pod), deadline)?;
        }
        if settings.ext_authz && pod.proxy != Proxy::None {
            ready::authz(&namespace, deadline)?;
        }
    }
    for (i, link) in settings.net_delays.iter().enumerate() {
        let [from, to] = ends(settings, topology, i, link);
        ready::until(&link_name(link), deadline, || {
            let routed = |a: &End, b| a.is_routed(b).map_err(|error| error.to_string());
            (routed(&from, &to)? && routed(&to, &from)?).then_some(()).ok_or_else(|| "no route leads through it".into())
        })?;
    }
    Ok(())
}

/// Adds the end of Envoy's own log, where it says what it does not like.
fn with_log(error: LabError, log: &Path) -> LabError {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let tail: Vec<_> = text.lines().rev().take(5).collect();
    match error {
        LabError::NotReady { what, seconds, why } if !tail.is_empty() => {
            let tail: Vec<_> = tail.into_iter().rev().collect();
            LabError::NotReady {
                what,
                seconds,
                why: format!("{why}; the end of {}:\n{}", log.display(), tail.join("\n")),
            }
        }
        other => other,
    }
}

/// A request from end to end, once per version of reviews: everything is connected, and the sidecars have met. It is in
/// the logs like any other.
fn first_request(settings: &Settings, topology: &Topology, logs: &Path) -> Result<(), LabError> {
    let caller = loadgen(logs)?;
    let Some(to) = topology.pod(LOADGEN).and_then(|pod| topology.destinations(pod).into_iter().next()) else {
        return Ok(());
    };
    let deadline = MonotonicNs::now().plus(ready::DEADLINE);
    let rounds = settings.reviews_versions.len().max(1);
    netns::within(&settings.name.namespace(LOADGEN), || {
        for _ in 0..rounds {
            ready::until("the first request through the mesh", deadline, || {
                match caller.call(&to, &Context::root(None, Bytes::default()), None).status {
                    Ok(200) => Ok(()),
                    Ok(status) => Err(format!("it was answered with {status}; Envoy's logs are in {}", logs.display())),
                    Err(why) => Err(why),
                }
            })?;
        }
        Ok::<(), LabError>(())
    })??;
    caller.log.flush();
    Ok(())
}

/// One exchange of each protocol that runs, until it succeeds. Nothing of them is logged by the client.
fn first_exchanges(settings: &Settings) -> Result<(), LabError> {
    let Some(place) = Place::of(settings) else { return Ok(()) };
    let deadline = MonotonicNs::now().plus(ready::DEADLINE);
    netns::within(&settings.name.namespace(LOADGEN), || {
        let mut tried = Vec::new();
        for case in cases::all().filter(|case| settings.workloads.contains(&case.workload)) {
            if tried.contains(&case.workload) {
                continue;
            }
            tried.push(case.workload);
            ready::until(&format!("the first exchange of {}", case.name), deadline, || {
                let made = (case.round)(&place, CHECK).map_err(|error| error.to_string())?;
                let failure = made.iter().find_map(|record| drive::failure(case, record));
                failure.map_or(Ok(()), Err)
            })?;
        }
        Ok(())
    })?
}

/// The load generator's end: logs into the lab's logs.
///
/// # Errors
/// When the log cannot be opened.
pub fn loadgen(logs: &Path) -> Result<Caller, LabError> {
    let path = logs.join("loadgen.ndjson");
    let log = Logbook::open(&path).map_err(LabError::io(format!("the log {} cannot be opened", path.display())))?;
    Ok(Caller { pod: LOADGEN.to_owned(), pool: Pool::default(), log })
}

/// Checks that a lab can make these delays.
///
/// # Errors
/// When a workload is unknown, or the sidecars were not set up to wait.
pub fn check_delays(settings: &Settings, delays: &crate::delay::DelayPlan) -> Result<(), LabError> {
    let topology = Topology::of(settings);
    for target in delays.targets() {
        let known = |pod: &Pod| pod.workload == target.workload || pod.app == target.workload;
        if !topology.pods.iter().any(known) {
            return Err(LabError::UnknownDelayTarget(target.to_string()));
        }
        if target.site.needs_ext_authz() && !settings.ext_authz {
            return Err(LabError::NeedsExtAuthz(target.to_string()));
        }
    }
    Ok(())
}

/// Takes a lab down. Says whether there was anything.
///
/// # Errors
/// When something resists.
pub fn down(name: &LabName, keep_logs: bool) -> Result<bool, LabError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    let _lock = Lock::lab(name)?;
    remove(name, keep_logs)
}

/// By the state where there is one, and by names in any case: a lab that was killed half-way goes as well.
fn remove(name: &LabName, keep_logs: bool) -> Result<bool, LabError> {
    let dir = StateDir::of(name);
    let state = dir.load()?;
    let namespaces = netns::named(&name.namespace_prefix());
    let existed = dir.path().exists() || !namespaces.is_empty();
    let recorded = state.iter().flat_map(|state| &state.processes).filter(|process| process.is_alive());
    let mut pids: BTreeSet<i32> = recorded.map(|process| process.pid).collect();
    let inodes: HashSet<u64> = namespaces.iter().filter_map(|namespace| netns::inode(namespace).ok()).collect();
    pids.extend(netns::processes_in(&inodes));
    terminate(&pids)?;
    network::remove(name)?;
    if let Some(controller) = CpuController::find() {
        controller.remove(name)?;
    }
    dir.remove(keep_logs)?;
    Ok(existed)
}

/// Takes a pod away for good and connects the one that gets its address, as when a pod is deleted and the address given to another.
///
/// # Errors
/// When there are no such pods, or they do not share an address.
pub fn replace(name: &LabName, old: &str, new: &str) -> Result<(), LabError> {
    let _lock = Lock::lab(name)?;
    let mut state = state(name)?;
    let topology = Topology::of(&state.settings);
    let unknown = |pod: &str| {
        let pods = topology.pods.iter().map(|pod| pod.workload.clone()).collect();
        SettingsError::UnknownPod { name: pod.to_owned(), pods }
    };
    let place = |workload: &str| topology.pods.iter().position(|pod| pod.workload == workload);
    let old = place(old).ok_or_else(|| unknown(old))?;
    let new = place(new).filter(|&i| topology.pods[i].ip == topology.pods[old].ip).ok_or_else(|| unknown(new))?;
    let of_old = |process: &Process| process.pod == topology.pods[old].workload;
    let pids = state.processes.iter().filter(|process| of_old(process)).map(|process| process.pid).collect();
    terminate(&pids)?;
    state.processes.retain(|process| !of_old(process));
    network::exchange(&state.settings, old, new)?;
    StateDir::of(name).store(&state)
}

/// The state of a lab that is up.
///
/// # Errors
/// When there is none.
pub fn state(name: &LabName) -> Result<State, LabError> {
    let unknown = || LabError::NoSuchLab { name: name.clone(), others: StateDir::all() };
    StateDir::of(name).load()?.ok_or_else(unknown)
}

/// Waits until the pods' processes have written out what they know: their logs are complete up to the last answer.
pub fn settle() {
    // Twice the logs' own interval.
    std::thread::sleep(Duration::from_millis(400));
}
