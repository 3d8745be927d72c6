//! A lab for one test, taken down again whatever happens.

use crate::binary;
use meshdiff_lab::truth::Truth;
use serde::Deserialize;
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// How the lab is to be.
#[derive(Clone, Debug, Default)]
pub struct LabOptions {
    /// Arguments of `meshdiff-lab up` beyond name, network and ALS address.
    pub arguments: Vec<String>,
}

impl LabOptions {
    /// Options from words.
    #[must_use]
    pub fn of(words: &[&str]) -> Self {
        Self { arguments: words.iter().map(|&w| w.to_owned()).collect() }
    }
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    name: String,
    /// Port on which the sidecars expect the access log endpoint.
    pub als_port: u16,
    logs: TempDir,
    load: TempDir,
}

/// What `meshdiff-lab status` says of a pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLine {
    /// Its workload, by which the lab calls it.
    pub workload: String,
    /// Its name.
    pub pod: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its other address, if it is dual stack.
    pub ip6: Option<Ipv6Addr>,
    /// Whether there is a proxy in it.
    pub meshed: bool,
    /// Its network namespace.
    pub netns_inode: u64,
}

/// What `meshdiff-lab load` said.
#[derive(Debug)]
pub struct Load(pub Value);

impl Lab {
    /// Brings a lab up.
    ///
    /// # Panics
    /// If that fails: the lab's own words are shown.
    #[must_use]
    pub fn up(what: &str, options: &LabOptions) -> Self {
        let id = std::process::id();
        let name = format!("e2e{}{what}", id % 1000);
        // 10.64.0.0/10 is left to the lab's own choice.
        let subnet = format!("10.{}.{}", 130 + id / 250 % 100, id % 250);
        let als_port = free_port();
        let logs = TempDir::new().expect("a temporary folder");
        let load = TempDir::new().expect("a temporary folder");
        let lab = Self { name, als_port, logs, load };
        let output = Command::new(binary("meshdiff-lab"))
            .args(["up", "--name", &lab.name, "--subnet", &format!("{subnet}.0/24")])
            .args(["--als", &format!("{subnet}.1:{als_port}")])
            .arg("--out")
            .arg(lab.logs.path())
            .args(&options.arguments)
            .output()
            .expect("the lab's binary runs");
        assert!(output.status.success(), "the lab does not come up: {}", String::from_utf8_lossy(&output.stderr));
        lab
    }

    /// Drives traffic.
    ///
    /// # Panics
    /// If the load generator fails.
    #[must_use]
    pub fn load(&self, arguments: &[&str]) -> Load {
        let output = Command::new(binary("meshdiff-lab"))
            .args(["load", "--name", &self.name])
            .arg("--out")
            .arg(self.load.path())
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .expect("the lab's binary runs");
        assert!(output.status.success(), "the load generator failed");
        Load(serde_json::from_slice(&output.stdout).expect("the load generator's report is JSON"))
    }

    /// Runs the cases of the protocol workloads; what came of them, case by case.
    ///
    /// # Panics
    /// If an exchange did not end as its case wants it.
    pub fn drive(&self, arguments: &[&str]) -> Value {
        self.drive_into(".", arguments)
    }

    /// The same with a folder of its own for the log, so that several can run at once.
    ///
    /// # Panics
    /// As [`drive`](Self::drive).
    pub fn drive_into(&self, folder: &str, arguments: &[&str]) -> Value {
        let output = Command::new(binary("meshdiff-lab"))
            .args(["drive", "--name", &self.name])
            .arg("--out")
            .arg(self.load.path().join(folder))
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .expect("the lab's binary runs");
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "the cases themselves failed: {report}");
        serde_json::from_str(&report).expect("the report is JSON")
    }

    /// Whether an exchange of that case has reached the server.
    #[must_use]
    pub fn has_arrived(&self, case: &str) -> bool {
        let log = std::fs::read_to_string(self.logs.path().join("echo-v1.app.ndjson")).unwrap_or_default();
        log.contains(&format!("\"case\":\"{case}\""))
    }

    /// The inode numbers of the pods' network namespaces.
    ///
    /// # Panics
    /// If the lab does not say.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        self.pods().iter().map(|p| p.netns_inode.to_string()).collect()
    }

    /// The pods.
    ///
    /// # Panics
    /// If the lab does not say.
    #[must_use]
    pub fn pods(&self) -> Vec<PodLine> {
        let output = Command::new(binary("meshdiff-lab"))
            .args(["status", "--json", "--name", &self.name])
            .output()
            .expect("the lab's binary runs");
        let status: Value = serde_json::from_slice(&output.stdout).expect("the lab's status is JSON");
        serde_json::from_value(status["pods"].clone()).expect("a lab has pods")
    }

    /// Asks the admin interface of a pod's Envoy.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn admin(&self, pod: &str, path: &str) -> String {
        let output = Command::new(binary("meshdiff-lab"))
            .args(["admin", "--name", &self.name, pod, path])
            .output()
            .expect("the lab's binary runs");
        assert!(output.status.success(), "Envoy does not answer: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Deletes a pod, and gives its address to another.
    ///
    /// # Panics
    /// If that fails.
    pub fn replace(&self, old: &str, new: &str) {
        let output = Command::new(binary("meshdiff-lab"))
            .args(["replace", "--name", &self.name, old, new])
            .output()
            .expect("the lab's binary runs");
        assert!(output.status.success(), "no other pod: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// From now on what a pod's sidecar logs does not arrive: its connections to the access log endpoint are refused.
    ///
    /// # Panics
    /// If that cannot be set up.
    pub fn refuse_logs_of(&self, workload: &str) {
        let pods = self.pods();
        let pod = pods.iter().find(|p| p.workload == workload).unwrap_or_else(|| panic!("no pod of {workload}"));
        let names = std::fs::read_dir("/run/netns").expect("the lab has namespaces").flatten();
        let netns = names
            .map(|name| name.path())
            .find(|path| std::fs::metadata(path).is_ok_and(|found| found.ino() == pod.netns_inode))
            .expect("a pod's namespace has a name");
        let status = Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .args(["iptables", "-w", "-I", "OUTPUT", "-p", "tcp", "--dport", &self.als_port.to_string()])
            .args(["-j", "REJECT", "--reject-with", "tcp-reset"])
            .status()
            .expect("nsenter runs");
        assert!(status.success(), "the connections of {workload}'s sidecar cannot be refused");
    }

    /// The folders with everything that the lab wrote down.
    #[must_use]
    pub fn log_folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.logs.path().to_owned(), self.load.path().to_owned()];
        let inner = std::fs::read_dir(self.load.path()).into_iter().flatten().flatten();
        folders.extend(inner.map(|entry| entry.path()).filter(|path| path.is_dir()));
        folders
    }

    /// Takes the lab down, which makes its applications flush their logs, and reads what really happened.
    ///
    /// # Panics
    /// If the logs cannot be read.
    #[must_use]
    pub fn down(self) -> Truth {
        self.take_down();
        let folders: Vec<PathBuf> = self.log_folders().into_iter().filter(|f| has_logs(f)).collect();
        Truth::read(folders).expect("the lab's logs are readable")
    }

    fn take_down(&self) {
        let done = Command::new(binary("meshdiff-lab")).args(["down", "--name", &self.name]).output();
        if let Ok(output) = done
            && !output.status.success()
        {
            eprintln!("the lab does not go down: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.take_down();
    }
}

impl Load {
    /// Requests that were answered with 200.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.0["ok"].as_u64().unwrap_or(0)
    }
    /// Requests in all.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0["requests"].as_u64().unwrap_or(0)
    }
    /// Requests answered in a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.0["achievedRate"].as_f64().unwrap_or(0.0)
    }
}

fn has_logs(folder: &Path) -> bool {
    std::fs::read_dir(folder)
        .is_ok_and(|list| list.flatten().any(|e| e.path().extension().is_some_and(|x| x == "ndjson")))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
