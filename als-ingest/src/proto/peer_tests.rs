use super::*;
use crate::proto::InvalidField;
use envoy_types::pb::google::protobuf::Value;
use proptest::prelude::*;

fn string(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn fields<const N: usize>(of: [(&str, Value); N]) -> Struct {
    Struct { fields: of.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }
}

fn nested(of: Struct) -> Value {
    Value { kind: Some(Kind::StructValue(of)) }
}

fn read(kind: &str, value: &[u8]) -> Result<Peer, NotAPeer> {
    decode(&format!("type.googleapis.com/google.protobuf.{kind}"), value, &mut Tally::default())
}

fn bytes_value(value: Vec<u8>) -> Vec<u8> {
    BytesValue { value }.encode_to_vec()
}

fn reviews() -> Peer {
    let text = |t: &str| Some(t.to_owned());
    Peer {
        name: text("reviews-v1-abc"),
        namespace: text("default"),
        workload: text("reviews-v1"),
        workload_type: text("deployment"),
        service: text("reviews"),
        revision: text("v1"),
        cluster: text("Kubernetes"),
        app: text("reviews-app"),
        version: text("1"),
        identity: None,
    }
}

#[test]
fn the_object_of_istio_since_1_24() {
    let object = fields([
        ("name", string("reviews-v1-abc")),
        ("namespace", string("default")),
        ("workload", string("reviews-v1")),
        ("type", string("deployment")),
        ("service", string("reviews")),
        ("revision", string("v1")),
        ("cluster", string("Kubernetes")),
        ("app", string("reviews-app")),
        ("version", string("1")),
        ("labels", nested(fields([("secret-label", string("not kept"))]))),
        ("something new", string("passed over")),
    ]);
    assert_eq!(read("Struct", &object.encode_to_vec()), Ok(reviews()));
}

#[test]
fn the_node_metadata_of_istio_since_1_18() {
    let labels = fields([
        ("service.istio.io/canonical-name", string("reviews")),
        ("service.istio.io/canonical-revision", string("v1")),
        ("app", string("reviews-app")),
        ("version", string("1")),
        ("name", string("a label, not the pod")),
    ]);
    let metadata = fields([
        ("NAME", string("reviews-v1-abc")),
        ("NAMESPACE", string("default")),
        ("WORKLOAD_NAME", string("reviews-v1")),
        ("OWNER", string("kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1")),
        ("CLUSTER_ID", string("Kubernetes")),
        ("LABELS", nested(labels)),
    ]);
    // CelState puts the prefix before a name that has it already.
    let twice = "type.googleapis.com/type.googleapis.com/google.protobuf.Struct";
    assert_eq!(decode(twice, &metadata.encode_to_vec(), &mut Tally::default()), Ok(reviews()));
}

#[test]
fn texts_of_endpoints_and_baggage() {
    let endpoint = StringValue { value: "reviews-v1;default;reviews;v1;Kubernetes".to_owned() };
    let want = Peer { name: None, workload_type: None, app: None, version: None, ..reviews() };
    assert_eq!(read("StringValue", &endpoint.encode_to_vec()), Ok(want.clone()));
    assert_eq!(read("BytesValue", &bytes_value(endpoint.value.into_bytes())), Ok(want));
    let baggage = "k8s.deployment.name=reviews-v1,k8s.namespace.name=default,k8s.cluster.name=Kubernetes,service.name=reviews,\
                   service.version=v1,app.name=reviews-app,app.version=1,k8s.instance.name=reviews-v1-abc";
    assert_eq!(read("StringValue", &StringValue { value: baggage.to_owned() }.encode_to_vec()), Ok(reviews()));
    let tokens = "type=deployment,workload=reviews-v1,name=reviews-v1-abc,cluster=Kubernetes,namespace=default,\
                  service=reviews,revision=v1,app=reviews-app,version=1";
    assert_eq!(read("BytesValue", &bytes_value(tokens.as_bytes().to_vec())), Ok(reviews()));
    assert_eq!(read("BytesValue", &[]), Ok(Peer::default()), "Envoy knows no peer");
    assert_eq!(read("BytesValue", &bytes_value(b"@".to_vec())), Err(NotAPeer));
    assert_eq!(read("Int64Value", &[]), Err(NotAPeer));
}

/// Writes a FlatBuffer front to back: tables refer forward only, and the vtable comes before its table.
#[derive(Default)]
struct Flat(Vec<u8>);

impl Flat {
    fn text(&mut self, text: &str) -> usize {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
        let at = self.0.len();
        self.0.extend(u32::try_from(text.len()).expect("short").to_le_bytes());
        self.0.extend(text.bytes());
        self.0.push(0);
        at
    }

    /// A table of this many fields; returns where the fields are, all of them references to be set.
    fn table(&mut self, present: &[bool]) -> (usize, Vec<usize>) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
        let vtable = self.0.len();
        let size = 4 + 2 * present.len();
        self.0.extend(u16::try_from(size).expect("small").to_le_bytes());
        self.0.extend(u16::try_from(4 + 4 * present.iter().filter(|p| **p).count()).expect("small").to_le_bytes());
        let mut offset = 4_u16;
        for present in present {
            self.0.extend(if *present { offset } else { 0 }.to_le_bytes());
            offset += if *present { 4 } else { 0 };
        }
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
        let at = self.0.len();
        self.0.extend(i32::try_from(at - vtable).expect("small").to_le_bytes());
        let fields = (0..present.iter().filter(|p| **p).count()).map(|n| at + 4 + 4 * n).collect();
        self.0.extend(vec![0; usize::from(offset) - 4]);
        (at, fields)
    }

    fn point(&mut self, from: usize, to: usize) {
        self.0[from..from + 4].copy_from_slice(&u32::try_from(to - from).expect("forward").to_le_bytes());
    }
}

fn flat_node() -> Vec<u8> {
    let mut flat = Flat(vec![0; 4]);
    let present = [true, true, true, true, true, false, false, false, false, true];
    let (root, fields) = flat.table(&present);
    flat.point(0, root);
    let texts = [
        (0, "reviews-v1-abc"),
        (1, "default"),
        (3, "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1"),
        (4, "reviews-v1"),
        (5, "Kubernetes"),
    ];
    for (field, text) in texts {
        let at = flat.text(text);
        flat.point(fields[field], at);
    }
    while !flat.0.len().is_multiple_of(4) {
        flat.0.push(0);
    }
    let labels = [
        ("app", "reviews-app"),
        ("service.istio.io/canonical-name", "reviews"),
        ("service.istio.io/canonical-revision", "v1"),
        ("version", "1"),
    ];
    let vector = flat.0.len();
    flat.0.extend(u32::try_from(labels.len()).expect("few").to_le_bytes());
    flat.0.extend(vec![0; 4 * labels.len()]);
    flat.point(fields[2], vector);
    for (n, (key, value)) in labels.into_iter().enumerate() {
        let (table, parts) = flat.table(&[true, true]);
        flat.point(vector + 4 + 4 * n, table);
        let key = flat.text(key);
        flat.point(parts[0], key);
        let value = flat.text(value);
        flat.point(parts[1], value);
    }
    flat.0
}

#[test]
fn the_flat_buffer_of_older_istios() {
    assert_eq!(read("BytesValue", &bytes_value(flat_node())), Ok(reviews()));
}

#[test]
fn long_names_are_cut_and_counted() {
    let mut tally = Tally::default();
    let object = fields([("workload", string(&"w".repeat(100_000)))]);
    let peer = decode("google.protobuf.Struct", &object.encode_to_vec(), &mut tally).expect("a peer");
    assert_eq!(peer.workload.map(|w| w.len()), Some(MAX_TEXT));
    assert_eq!(tally.invalid_fields[InvalidField::CutString as usize], 1);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(kind in prop::sample::select(vec!["Struct", "BytesValue", "StringValue", "Other"]), value in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(read(kind, &value));
        drop(read("BytesValue", &bytes_value(value)));
    }

    #[test]
    fn a_damaged_flat_buffer_is_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        let mut bytes = flat_node();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        drop(read("BytesValue", &bytes_value(bytes.clone())));
        bytes.truncate(cut.index(bytes.len()));
        drop(read("BytesValue", &bytes_value(bytes)));
    }
}
