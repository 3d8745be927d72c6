//! etcd and the API server.

use crate::identity::{Authority, Identity};
use crate::network::{API_SERVER, within};
use crate::programs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// For what takes seconds on a machine with nothing else to do.
const DEADLINE: Duration = Duration::from_secs(180);
const PORT: u16 = 6443;
/// Of a cluster's folder, before the number of its process.
const FOLDER: &str = "meshdiff-cluster-";
/// Says in it that a test failed.
const FAILED: &str = "failed";

/// A running control plane. It ends with this process.
#[derive(Debug)]
pub struct ControlPlane {
    folder: PathBuf,
    programs: PathBuf,
    authority: Authority,
    api_server: Mutex<Child>,
    _etcd: Child,
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ended {
    /// Asserts that it ended well. Returns what it wrote.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stderr, self.stdout);
        self.stdout
    }

    /// Asserts the exit code, and that stderr says all of `words`, in sentences and not in a panic.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn says(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stderr, self.stdout);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

impl ControlPlane {
    /// The one of this process, started where it is not yet.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn get() -> &'static Self {
        static ONE: OnceLock<ControlPlane> = OnceLock::new();
        ONE.get_or_init(|| {
            remove_what_others_left();
            let folder = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
            fs::create_dir_all(&folder).expect("a folder");
            remove_at_the_end(&folder);
            Self::start(folder)
        })
    }

    fn start(folder: PathBuf) -> Self {
        let programs = programs();
        let authority = Authority::new();
        let server = authority.server(API_SERVER.parse().expect("an address"));
        // Tokens of service accounts are signed with a key of their own.
        let account = authority.user("service-accounts", None, false);
        let files = [
            ("ca.pem", authority.pem()),
            ("server.pem", server.certificate),
            ("server.key", server.key),
            ("account.pem", account.certificate),
            ("account.key", account.key),
        ];
        for (name, content) in files {
            fs::write(folder.join(name), content).expect("written");
        }
        let etcd = spawn(etcd(&programs, &folder), &folder.join("etcd.log"));
        let api_server = spawn(api_server(&programs, &folder), &folder.join("api-server.log"));
        let plane = Self { folder, programs, authority, api_server: Mutex::new(api_server), _etcd: etcd };
        plane.write_kubeconfig("admin", &plane.authority.user("admin", Some("system:masters"), false));
        plane.wait();
        plane
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Panics
    /// If it does not within a deadline.
    pub fn wait(&self) {
        let started = Instant::now();
        loop {
            let ended = self.kubectl("admin", &["get", "--raw=/readyz", "--request-timeout=5s"], None);
            // Roles of the system are made after the start.
            let roles = || self.kubectl("admin", &["get", "clusterrole", "view", "--request-timeout=5s"], None);
            if ended.code == Some(0) && roles().code == Some(0) {
                return;
            }
            let log = || fs::read_to_string(self.folder.join("api-server.log")).unwrap_or_default();
            let tail = || log().lines().rev().take(15).collect::<Vec<_>>().join("\n");
            assert!(started.elapsed() < DEADLINE, "the API server is not ready: {}\n{}", ended.stderr, tail());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends the API server; etcd stays.
    ///
    /// # Panics
    /// If it cannot be ended.
    pub fn take_api_server_away(&self) {
        let mut child = self.api_server.lock().expect("no panic");
        child.kill().expect("it runs");
        child.wait().expect("its end");
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn bring_api_server_back(&self) {
        *self.api_server.lock().expect("no panic") =
            spawn(api_server(&self.programs, &self.folder), &self.folder.join("api-server-2.log"));
        self.wait();
    }

    /// Makes a user, with a kubeconfig of that name.
    pub fn add_user(&self, name: &str, expired: bool) {
        self.write_kubeconfig(name, &self.authority.user(name, None, expired));
    }

    /// Where a user's kubeconfig is.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.join(format!("{user}.kubeconfig"))
    }

    fn write_kubeconfig(&self, name: &str, identity: &Identity) {
        let path = |file: String, content: &str| {
            let path = self.folder.join(file);
            fs::write(&path, content).expect("written");
            path
        };
        let certificate = path(format!("{name}.pem"), &identity.certificate);
        let key = path(format!("{name}.key"), &identity.key);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{API_SERVER}:{PORT}"), "certificate-authority": self.folder.join("ca.pem")}}],
            "users": [{"name": name, "user": {"client-certificate": certificate, "client-key": key}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name, "namespace": "default"}}],
        });
        fs::write(self.kubeconfig(name), config.to_string()).expect("written");
    }

    /// `kubectl ARGUMENTS`, as a user.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn kubectl(&self, user: &str, arguments: &[&str], input: Option<&str>) -> Ended {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig(user)).env("HOME", &self.folder);
        run(command, input)
    }

    /// Makes or changes objects as the administrator, with the server's strict validation.
    ///
    /// # Panics
    /// If the API server refuses.
    #[track_caller]
    pub fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let arguments = ["apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-"];
        self.kubectl("admin", &arguments, Some(&list)).well();
    }

    /// Sets an object's status, which only kubelets and controllers do elsewhere.
    ///
    /// # Panics
    /// If the API server refuses.
    #[track_caller]
    pub fn set_status(&self, namespace: &str, object: &str, status: &Value) {
        let patch = json!({ "status": status }).to_string();
        let arguments = ["-n", namespace, "patch", object, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl("admin", &arguments, None).well();
    }

    /// Runs one of the cluster's programs that need no cluster.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Ended {
        let mut command = Command::new(self.programs.join(name));
        command.args(arguments).env("HOME", &self.folder);
        run(command, None)
    }

    /// `meshdiff ARGUMENTS`, as a user, in the cluster's network.
    pub fn meshdiff(&self, program: &Path, user: &str, arguments: &[&str]) -> Ended {
        run(self.meshdiff_command(program, user, arguments), None)
    }

    /// Starts `meshdiff ARGUMENTS`, as a user, in the cluster's network, with a log of this name for all that it says.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_meshdiff(&self, program: &Path, user: &str, arguments: &[&str], log: &str) -> Running {
        let command = self.meshdiff_command(program, user, arguments);
        Running { child: spawn(command, &self.folder.join(log)), log: self.folder.join(log) }
    }

    /// Starts `kubectl ARGUMENTS` as the administrator; what it writes to stdout can be read from the child.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn stream(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig("admin")).env("HOME", &self.folder);
        within(move || {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            ending_with_us(&mut command).spawn().expect("kubectl")
        })
    }

    /// Starts a program in the cluster's network, with a log of this name.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start_program(&self, program: &Path, arguments: &[&str], log: &str) -> Running {
        let mut command = Command::new(program);
        command.args(arguments).env("HOME", &self.folder);
        Running { child: spawn(command, &self.folder.join(log)), log: self.folder.join(log) }
    }

    fn meshdiff_command(&self, program: &Path, user: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig(user))
            .env_remove("MESHDIFF_TOKEN")
            .env("HOME", &self.folder);
        command
    }

    /// A folder for what a test needs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A program that runs until this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// What it wrote until now.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has written something.
    ///
    /// # Panics
    /// If it has ended before, or does not within a deadline.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) {
        let started = Instant::now();
        while !self.log().contains(words) {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none() || self.log().contains(words), "it ended without {words:?}: {}", self.log());
            assert!(started.elapsed() < DEADLINE, "it does not say {words:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has ended already.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("it runs");
    }

    /// True if it ended by itself within this time.
    ///
    /// # Panics
    /// If the kernel does not say.
    pub fn ends_within(&mut self, time: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < time {
            if self.child.try_wait().expect("a child").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Waits for its end; all that it said is in `stderr`.
    ///
    /// # Panics
    /// If it does not end within a deadline.
    #[track_caller]
    pub fn ended(mut self) -> Ended {
        assert!(self.ends_within(DEADLINE), "it does not end: {}", self.log());
        let code = self.child.wait().expect("its end").code();
        Ended { code, stdout: String::new(), stderr: self.log() }
    }

    /// Kills it, as the kernel does that is out of memory.
    ///
    /// # Panics
    /// If it has ended already.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("its end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster's programs end with their process, which therefore cannot take their folder away: a shell does that waits for its end. What a
/// test that failed has left is kept, for who looks into it.
fn remove_at_the_end(folder: &Path) {
    let failed = folder.join(FAILED);
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        drop(fs::write(&failed, panic.to_string()));
        said(panic);
    }));
    // The end of its input is the end of this process. Nobody waits for its output.
    let script =
        format!("cat; [ -e \"$0/{FAILED}\" ] || for i in 1 2 3 4 5; do rm -rf -- \"$0\" && exit; sleep 1; done");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let shell = command.spawn().expect("sh");
    // For as long as this process lives.
    std::mem::forget(shell);
}

/// What was left all the same, by processes that are gone.
fn remove_what_others_left() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(|n| n.strip_prefix(FOLDER)).and_then(|pid| pid.parse::<u32>().ok());
        if of.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

fn etcd(programs: &Path, folder: &Path) -> Command {
    let mut command = Command::new(programs.join("etcd"));
    command.arg("--data-dir").arg(folder.join("etcd"));
    // It keeps nothing that matters: syncing each write would only make slow disks matter.
    command.args(["--unsafe-no-fsync", "--log-level=warn", "--listen-client-urls=http://127.0.0.1:2379"]);
    command.args(["--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380"]);
    command
}

fn api_server(programs: &Path, folder: &Path) -> Command {
    let mut command = Command::new(programs.join("kube-apiserver"));
    let file = |flag: &str, name: &str| format!("--{flag}={}", folder.join(name).display());
    command.args([
        file("client-ca-file", "ca.pem"),
        file("tls-cert-file", "server.pem"),
        file("tls-private-key-file", "server.key"),
        file("service-account-key-file", "account.pem"),
        file("service-account-signing-key-file", "account.key"),
        file("cert-dir", "certs"),
        format!("--bind-address={API_SERVER}"),
        format!("--advertise-address={API_SERVER}"),
        format!("--secure-port={PORT}"),
    ]);
    command.args([
        "--etcd-servers=http://127.0.0.1:2379",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.98.0.0/24",
        "--authorization-mode=RBAC",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        "--endpoint-reconciler-type=none",
        // There is no controller that would make the accounts and their tokens.
        "--disable-admission-plugins=ServiceAccount",
        "--v=1",
    ]);
    command
}

/// Starts a program in the cluster's network, that ends with this process.
fn spawn(mut command: Command, log: &Path) -> Child {
    let log = File::create(log).expect("a log");
    within(move || {
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        ending_with_us(&mut command).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
    })
}

/// Runs a program in the cluster's network to its end.
fn run(mut command: Command, input: Option<&str>) -> Ended {
    let input = input.map(str::to_owned);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = within(move || {
        let child = ending_with_us(&mut command).spawn();
        child.unwrap_or_else(|e| panic!("{command:?}: {e}"))
    });
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // Who fails early does not read; how it ended tells more.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().expect("its end").into()
}

/// The kernel ends it when the thread ends that started it, which lives as long as this process.
fn ending_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl is one.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL))?));
    }
    command
}
