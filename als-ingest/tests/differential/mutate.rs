//! Changes to messages: to their bytes, and to their fields in such a way that lengths still fit.

use crate::generate::Random;

/// A varint, as short as can be.
pub(crate) fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

/// A length-delimited field.
pub(crate) fn field(number: u32, value: &[u8]) -> Vec<u8> {
    [varint(u64::from(number) << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// The length-delimited fields of a well-formed message.
pub(crate) fn length_delimited(message: &[u8]) -> Vec<(u32, &[u8])> {
    fn walk<'a>(mut rest: &'a [u8], found: &mut Vec<(u32, &'a [u8])>) -> Option<()> {
        while !rest.is_empty() {
            let (number, value) = next(&mut rest)?;
            if let Raw::Bytes(bytes) = value {
                found.push((number, bytes));
            }
        }
        Some(())
    }
    let mut found = Vec::new();
    walk(message, &mut found).expect("well-formed");
    found
}

enum Raw<'a> {
    Varint(u64),
    Fixed(u8, &'a [u8]),
    Bytes(&'a [u8]),
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<(u32, Raw<'a>)> {
    let key = prost::encoding::decode_varint(rest).ok()?;
    let number = u32::try_from(key >> 3).ok().filter(|&n| n > 0)?;
    let mut take = |len: usize| {
        let (taken, after) = rest.split_at_checked(len)?;
        *rest = after;
        Some(taken)
    };
    let value = match key & 7 {
        0 => Raw::Varint(prost::encoding::decode_varint(rest).ok()?),
        1 => Raw::Fixed(1, take(8)?),
        5 => Raw::Fixed(5, take(4)?),
        2 => {
            let len = usize::try_from(prost::encoding::decode_varint(rest).ok()?).ok()?;
            let (taken, after) = rest.split_at_checked(len)?;
            *rest = after;
            Raw::Bytes(taken)
        }
        _ => return None,
    };
    Some((number, value))
}

/// Changes, inserts or removes a few bytes.
pub(crate) fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let until = (at + random.below(4)).min(bytes.len());
    match random.below(5) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..until)),
        2 => drop(bytes.splice(at..at, random.bytes(4))),
        3 => bytes[at..until].iter_mut().for_each(|byte| *byte = random.byte()),
        _ => bytes[at..until].iter_mut().for_each(|byte| *byte ^= 1 << random.below(8)),
    }
}

#[derive(Clone, Debug)]
enum Node {
    Varint(u32, u64),
    Bytes(u32, Vec<u8>),
    Message(u32, Vec<Node>),
    /// Key and value, as they are.
    Verbatim(Vec<u8>),
}

/// The fields of a message; `None` if it is none. What looks like a message is taken for one, even if it is text.
fn parse(mut bytes: &[u8]) -> Option<Vec<Node>> {
    let mut nodes = Vec::new();
    while !bytes.is_empty() {
        let (number, value) = next(&mut bytes)?;
        nodes.push(match value {
            Raw::Varint(value) => Node::Varint(number, value),
            Raw::Fixed(wire, value) => {
                Node::Verbatim([varint(u64::from(number) << 3 | u64::from(wire)), value.to_vec()].concat())
            }
            Raw::Bytes(value) => match parse(value) {
                Some(inner) => Node::Message(number, inner),
                None => Node::Bytes(number, value.to_vec()),
            },
        });
    }
    Some(nodes)
}

fn encode(nodes: &[Node]) -> Vec<u8> {
    nodes
        .iter()
        .flat_map(|node| match node {
            Node::Varint(number, value) => [varint(u64::from(*number) << 3), varint(*value)].concat(),
            Node::Bytes(number, value) => field(*number, value),
            Node::Message(number, inner) => field(*number, &encode(inner)),
            Node::Verbatim(bytes) => bytes.clone(),
        })
        .collect()
}

/// Changes some fields of a message or of the messages in it.
pub(crate) fn rearrange(message: &[u8], random: &mut Random) -> Vec<u8> {
    let mut nodes = parse(message).expect("well-formed");
    for _ in 0..=random.below(4) {
        change(&mut nodes, random);
    }
    encode(&nodes)
}

fn change(nodes: &mut Vec<Node>, random: &mut Random) {
    // Mostly further down, where there is more.
    if !nodes.is_empty() && !random.one_in(4) {
        let at = random.below(nodes.len());
        if let Node::Message(_, inner) = &mut nodes[at] {
            return change(inner, random);
        }
    }
    if nodes.is_empty() {
        return nodes.push(invented(random));
    }
    let at = random.below(nodes.len());
    let to = random.below(nodes.len() + 1);
    match random.below(10) {
        0 => drop(nodes.remove(at)),
        1 => nodes.insert(to, nodes[at].clone()),
        // Another occurrence that differs from the first.
        2 => {
            let mut again = vec![nodes[at].clone()];
            change(&mut again, random);
            drop(nodes.splice(to..to, again));
        }
        3 => {
            let moved = nodes.remove(at);
            nodes.insert(to.min(nodes.len()), moved);
        }
        4 => nodes.insert(to, invented(random)),
        5 => renumber(&mut nodes[at], u32::try_from(random.below(40)).expect("small")),
        6 => split(nodes, at, random),
        7 => {
            if let Node::Varint(_, value) = &mut nodes[at] {
                *value = random.integer();
            }
        }
        8 => match &mut nodes[at] {
            Node::Bytes(_, bytes) => damage(bytes, random),
            node => *node = invented(random),
        },
        _ => nodes[at] = padded(&nodes[at], random),
    }
}

fn renumber(node: &mut Node, to: u32) {
    match node {
        Node::Varint(number, _) | Node::Bytes(number, _) | Node::Message(number, _) => *number = to,
        Node::Verbatim(_) => {}
    }
}

/// One message as two occurrences.
fn split(nodes: &mut Vec<Node>, at: usize, random: &mut Random) {
    if let Node::Message(number, inner) = &mut nodes[at] {
        let rest = inner.split_off(random.below(inner.len() + 1));
        let second = Node::Message(*number, rest);
        nodes.push(second);
    }
}

/// The same field with varints longer than they need be, some of them too long.
fn padded(node: &Node, random: &mut Random) -> Node {
    let mut pad = |value: u64| {
        let mut bytes = varint(value);
        let zeros = random.below(11);
        if zeros > 0 {
            *bytes.last_mut().expect("not empty") |= 0x80;
            bytes.extend(std::iter::repeat_n(0x80, zeros - 1));
            bytes.push(0);
        }
        bytes
    };
    Node::Verbatim(match node {
        Node::Varint(number, value) => [pad(u64::from(*number) << 3), pad(*value)].concat(),
        Node::Bytes(number, bytes) => {
            [pad(u64::from(*number) << 3 | 2), pad(bytes.len() as u64), bytes.clone()].concat()
        }
        Node::Message(number, inner) => {
            let inner = encode(inner);
            [pad(u64::from(*number) << 3 | 2), pad(inner.len() as u64), inner].concat()
        }
        Node::Verbatim(bytes) => bytes.clone(),
    })
}

/// A field of any number and wire type, with a value that may fit it.
fn invented(random: &mut Random) -> Node {
    let number = match random.below(3) {
        0 => random.integer() >> 3,
        _ => random.below(40) as u64,
    };
    let key = |wire: u64| varint(number << 3 | wire);
    Node::Verbatim(match random.below(8) {
        0 => [key(0), varint(random.integer())].concat(),
        1 => [key(1), vec![0; 8]].concat(),
        2 => [key(2), vec![3], b"abc".to_vec()].concat(),
        3 => [key(2), vec![2, 0x08, 0x07]].concat(),
        4 => [key(5), vec![0; 4]].concat(),
        5 => {
            let inner = if random.one_in(2) { encode(&[invented(random)]) } else { Vec::new() };
            [key(3), inner, key(4)].concat()
        }
        6 => [key(random.below(8) as u64), random.bytes(6)].concat(),
        _ => [key(2), vec![0]].concat(),
    })
}
