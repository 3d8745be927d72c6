//! `meta.json`: what was recorded, how, and what is missing from it.

use crate::error::CaptureError;
use crate::kubernetes::KubernetesInfo;
use crate::table::Table;
use crate::{META_FILE, SCHEMA_NUMBER, SCHEMA_PREFIX, SCHEMA_VERSION};
use meshdiff_model::{ClockAnchor, ClockSample, Metric, NetnsId, ProbeStats, ProbeTier};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// More than this is no `meta.json` of ours.
const MAX_META_BYTES: u64 = 64 << 20;

/// Whether a recording was ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingState {
    /// Not yet, or the recorder died.
    #[default]
    Recording,
    /// Properly.
    Complete,
}

/// `meta.json`. Fields that a reader does not know are ignored, and fields that an older capture lacks have their
/// default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// [`SCHEMA_VERSION`]; set by the writer.
    pub schema_version: String,
    /// Set by the writer.
    pub state: RecordingState,
    /// What wrote it.
    pub tool: ToolInfo,
    /// When the recording began.
    pub start: ClockSample,
    /// When it ended; `None` while it runs.
    pub end: Option<ClockSample>,
    /// How the wall clock ran against the monotonic clock.
    pub clock: ClockAnchor,
    /// Where it was made.
    pub host: HostInfo,
    /// How the kernel was watched.
    pub probes: ProbeInfo,
    /// Socket events that reached the recorder.
    pub events: EventCounts,
    /// What came from the access log streams.
    pub als: AlsStats,
    /// Namespaces that were watched, in order of first being watched.
    pub watched_netns: Vec<WatchedNetns>,
    /// What the Kubernetes API said of the pods; `None` if it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesInfo>,
    /// Envoy versions that reported, and by how many proxies.
    pub envoy_versions: BTreeMap<String, u64>,
    /// `net.ipv4.tcp_congestion_control`: pacing (bbr) moves the instants at which bytes become ready.
    pub congestion_control: Option<String>,
    /// The recorder's settings, as it names them.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// What the operator should know, in words.
    pub warnings: Vec<String>,
    /// What was written, by table; set by the writer.
    pub tables: BTreeMap<Table, TableStats>,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION.to_owned(),
            state: RecordingState::default(),
            tool: ToolInfo::default(),
            start: ClockSample { monotonic: Default::default(), wall: Default::default() },
            end: None,
            clock: ClockAnchor::default(),
            host: HostInfo::default(),
            probes: ProbeInfo::default(),
            events: EventCounts::default(),
            als: AlsStats::default(),
            watched_netns: Vec::new(),
            kubernetes: None,
            envoy_versions: BTreeMap::new(),
            congestion_control: None,
            settings: serde_json::Map::new(),
            warnings: Vec::new(),
            tables: BTreeMap::new(),
        }
    }
}

/// The program that wrote a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ToolInfo {
    /// `meshdiff`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The machine on which a capture was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostInfo {
    /// Its name.
    pub hostname: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// `uname -m`.
    pub architecture: String,
    /// `/proc/sys/kernel/random/boot_id`: monotonic instants of two captures compare only if it is the same.
    pub boot_id: String,
    /// CPUs online.
    pub cpus: u32,
}

/// How the kernel was watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeInfo {
    /// The kind of probe that was used.
    pub tier: ProbeTier,
    /// Better tiers that the kernel refused, and why.
    pub refused: Vec<TierRefusal>,
    /// What was not measured because the kernel refused the probes for it, and why.
    pub unmeasured: Vec<Unmeasured>,
    /// What they did, and what they cost.
    pub stats: ProbeStats,
    /// Libraries with which applications in watched namespaces do TLS themselves, in order of being found.
    pub tls_libraries: Vec<TlsLibrary>,
}

impl Default for ProbeInfo {
    fn default() -> Self {
        Self {
            tier: ProbeTier::None,
            refused: Vec::new(),
            unmeasured: Vec::new(),
            stats: ProbeStats::default(),
            tls_libraries: Vec::new(),
        }
    }
}

/// A tier that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierRefusal {
    /// The tier.
    pub tier: ProbeTier,
    /// What the kernel said, or that it was not asked for.
    pub reason: String,
}

/// A metric that is absent from a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unmeasured {
    /// Which.
    pub metric: Metric,
    /// What the kernel said.
    pub reason: String,
}

/// A libssl of processes in watched namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsLibrary {
    /// Its path, as those processes know it.
    pub path: String,
    /// Processes that were found to use it and of which the rest is true.
    pub processes: u64,
    /// Its calls were followed: what is sent with it is told by its plaintext.
    pub followed: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// Socket events by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventCounts {
    /// Send calls.
    pub sends: u64,
    /// Readiness.
    pub readies: u64,
    /// Reads.
    pub recvs: u64,
    /// Changes of a socket's state.
    pub states: u64,
    /// Bytes held back, segments sent again, resets and drops.
    pub others: u64,
    /// Records that could not be decoded.
    pub malformed: u64,
}

/// Access log entries of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryCounts {
    /// Entries that arrived.
    pub received: u64,
    /// Entries that are in the capture.
    pub kept: u64,
    /// Entries that the recorder had no room for.
    pub dropped: u64,
    /// Entries that could not be understood.
    pub malformed: u64,
}

/// What came from the access log streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AlsStats {
    /// Where the endpoint listened; `None` if there was none.
    pub listen: Option<String>,
    /// Streams that were opened.
    pub streams: u64,
    /// Stream messages that could not be understood at all.
    pub malformed_messages: u64,
    /// HTTP entries.
    pub http: EntryCounts,
    /// TCP entries.
    pub tcp: EntryCounts,
    /// Entries that Envoy is estimated to have dropped before they were sent; `None` without an estimate.
    pub lost_estimate: Option<u64>,
    /// What the estimate rests on.
    pub lost_estimate_basis: Option<String>,
    /// Everything that was out of the ordinary, by kind: `malformed_entries.negative_duration`, `streams_failed.connection`
    /// and the like. Kinds that did not occur are absent.
    pub trouble: BTreeMap<String, u64>,
}

/// A namespace that was watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchedNetns {
    /// Its inode number.
    pub netns: NetnsId,
    /// Why it was watched.
    pub reason: WatchReason,
    /// More about the reason: the Envoy's process, the port, the name that was asked for.
    pub detail: String,
}

/// Why a namespace was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchReason {
    /// An Envoy runs in it.
    Envoy,
    /// Something listens on 15001 or 15006 in it.
    Listener,
    /// The operator named it or a process in it.
    Asked,
    /// The operator asked for all.
    All,
}

/// What was written of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TableStats {
    /// Complete parts.
    pub parts: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Rows that could not be written.
    pub dropped_rows: u64,
}

/// A text that is no `meta.json` for this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotMeta {
    /// A later version wrote it.
    Newer(String),
    /// It is something else, or damaged.
    Bad(String),
}

impl Meta {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("meta has only string keys, so it always serialises");
        json.push(b'\n');
        json
    }

    /// Reads the `meta.json` of a folder.
    pub(crate) fn read(dir: &Path) -> Result<Self, CaptureError> {
        let path = dir.join(META_FILE);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(CaptureError::NoMeta(dir.to_owned())),
            Err(e) => return Err(CaptureError::Read { path, source: e }),
        };
        let mut json = Vec::new();
        file.take(MAX_META_BYTES + 1).read_to_end(&mut json).map_err(CaptureError::read(&path))?;
        let bad = |reason: String| CaptureError::BadMeta { path: path.clone(), reason };
        if json.len() as u64 > MAX_META_BYTES {
            return Err(bad(format!("it is larger than {MAX_META_BYTES} bytes")));
        }
        Self::from_json(&json).map_err(|error| match error {
            NotMeta::Newer(found) => CaptureError::NewerSchema { path: dir.to_owned(), found },
            NotMeta::Bad(reason) => bad(reason),
        })
    }

    /// Understands a `meta.json`.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, NotMeta> {
        let bad = |e: serde_json::Error| NotMeta::Bad(e.to_string());
        // The version comes first: a later schema may have any other shape.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            schema_version: Option<String>,
        }
        let version: Version = serde_json::from_slice(json).map_err(bad)?;
        let version = version.schema_version.ok_or_else(|| NotMeta::Bad("it has no schemaVersion".to_owned()))?;
        let number = version.strip_prefix(SCHEMA_PREFIX).and_then(|n| n.parse::<u32>().ok());
        match number {
            Some(1..=SCHEMA_NUMBER) => {}
            Some(n) if n > SCHEMA_NUMBER => return Err(NotMeta::Newer(version)),
            _ => return Err(NotMeta::Bad(format!("its schemaVersion is {version:?}, not {SCHEMA_VERSION:?}"))),
        }
        serde_json::from_slice(json).map_err(bad)
    }
}
