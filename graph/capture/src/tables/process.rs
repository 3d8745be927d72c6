//! `processes`: who owned the sockets.

use super::{Decoded, Row, decode_rows};
use crate::column::{Column, named, opt_text, opt_u32, text, u32};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{Interner, View};
use arrow::datatypes::UInt32Type;
use meshdiff_model::{NetnsId, Process, Tgid};

impl Row for Process {
    const TABLE: Table = Table::Processes;

    fn columns() -> Vec<Column<Self>> {
        vec![
            u32("tgid", |p: &Self| p.tgid.0).doc("Process id in the host's pid namespace."),
            u32("netns", |p: &Self| p.netns.0).doc("Network namespace, by its inode number."),
            text("comm", |p: &Self| &p.comm).doc("The name that the process gives itself, at most 15 bytes."),
            opt_text("exe", |p: &Self| p.exe.as_deref()).doc("The file that it executes; null if not readable."),
            opt_u32("uid", |p: &Self| p.uid).doc("Effective user id (Istio's sidecar: 1337)."),
            opt_text("cgroup", |p: &Self| p.cgroup.as_deref())
                .doc("Its control group, which names pod and container in Kubernetes."),
            named("role", |p: &Self| p.role).doc("`sidecar` or `application`."),
        ]
    }

    fn decode(view: &View<'_>, _: &Interner) -> Result<Decoded<Self>, PartError> {
        let tgid = view.number::<UInt32Type>("tgid")?;
        let netns = view.number::<UInt32Type>("netns")?;
        let comm = view.text("comm")?;
        let exe = view.text("exe")?;
        let uid = view.number::<UInt32Type>("uid")?;
        let cgroup = view.text("cgroup")?;
        let role = view.text("role")?;
        Ok(decode_rows(view, |i| {
            Ok(Self {
                tgid: Tgid(tgid.get(i)?),
                netns: NetnsId(netns.get(i)?),
                comm: comm.get(i)?.to_owned(),
                exe: exe.string(i),
                uid: uid.opt(i),
                cgroup: cgroup.string(i),
                role: role.named(i)?,
            })
        }))
    }
}
