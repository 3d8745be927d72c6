//! The answers as a table, and as JSON.

use super::{Answer, Machine, Namespace, Status};
use comfy_table::{ContentArrangement, Table, presets};
use meshdiff_model::ProcessRole;
use serde_json::{Value, json};

/// Processes of a namespace that are named in the table; the rest is counted.
const NAMED: usize = 8;

/// Answers, and what they come to.
pub(crate) fn answers_table(answers: &[Answer], conclusion: &str) -> String {
    finished(started(answers), conclusion)
}

fn started(answers: &[Answer]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some((terminal_size::Width(width), _)) = terminal_size::terminal_size() {
        table.set_width(width);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    for answer in answers {
        table.add_row([word(answer.status), &answer.name, &with_fix(&answer.text, answer.fix.as_deref())]);
    }
    table
}

fn finished(mut table: Table, conclusion: &str) -> String {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n\n{conclusion}\n", lines.join("\n"))
}

pub(super) fn table(machine: &Machine) -> String {
    let mut table = started(&machine.answers);
    let used = machine.tier();
    for tried in &machine.tiers {
        let name = format!("{} probes", tried.tier.as_str());
        let (status, text) = match &tried.refusal {
            None if used == Some(tried.tier) => (Status::Good, "work; record would use them".to_owned()),
            None => (Status::Good, "work, too".to_owned()),
            Some((reason, fix)) if used.is_some() => (Status::Note, with_fix(reason, Some(fix))),
            Some((reason, fix)) => (Status::Bad, with_fix(reason, Some(fix))),
        };
        table.add_row([word(status), &name, &text]);
    }
    // Of the kind that would be used: what it does not tell.
    for missing in machine.tiers.iter().filter(|t| used == Some(t.tier)).flat_map(|t| &t.unmeasured) {
        let text = with_fix(&format!("not measured: {}", missing.reason), Some(missing.fix));
        table.add_row([word(Status::Note), missing.metric.as_str(), &text]);
    }
    for namespace in &machine.namespaces {
        table.add_row(["", &format!("namespace {}", namespace.netns.0), &described(namespace)]);
    }
    finished(table, &machine.conclusion())
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Good => "ok",
        Status::Note => "note",
        Status::Bad => "no",
    }
}

fn with_fix(text: &str, fix: Option<&str>) -> String {
    fix.map_or_else(|| text.to_owned(), |fix| format!("{text}\nfix: {fix}"))
}

fn described(namespace: &Namespace) -> String {
    let mut named: Vec<String> = namespace
        .processes
        .iter()
        .take(NAMED)
        .map(|p| {
            let role = if p.role == ProcessRole::Sidecar { ", the sidecar" } else { "" };
            format!("{} ({}{role})", visible(&p.comm), p.tgid.0)
        })
        .collect();
    if namespace.processes.len() > NAMED {
        named.push(format!("and {} more", namespace.processes.len() - NAMED));
    }
    format!("{}: {}", namespace.why, named.join(", "))
}

/// A process chooses its own name: control characters must not reach the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The same as JSON.
pub(crate) fn answers_json(answers: &[Answer], ready: bool, conclusion: &str) -> String {
    let all = json!({
        "schemaVersion": "meshdiff.check/v1",
        "ready": ready,
        "conclusion": conclusion,
        "checks": checks(answers),
    });
    format!("{all:#}\n")
}

fn checks(answers: &[Answer]) -> Vec<Value> {
    let check = |a: &Answer| json!({"name": a.name, "status": word(a.status), "text": a.text, "fix": a.fix});
    answers.iter().map(check).collect()
}

pub(super) fn json(machine: &Machine) -> String {
    let checks = checks(&machine.answers);
    let tiers: Vec<Value> = machine
        .tiers
        .iter()
        .map(|t| {
            let (reason, fix) = t.refusal.as_ref().map(|(reason, fix)| (reason.as_str(), *fix)).unzip();
            let unmeasured: Vec<Value> = t
                .unmeasured
                .iter()
                .map(|u| json!({"metric": u.metric.as_str(), "reason": u.reason, "fix": u.fix}))
                .collect();
            let works = t.refusal.is_none();
            json!({"tier": t.tier.as_str(), "works": works, "reason": reason, "fix": fix, "unmeasured": unmeasured})
        })
        .collect();
    let namespaces: Vec<Value> = machine
        .namespaces
        .iter()
        .map(|n| {
            let processes: Vec<Value> =
                n.processes.iter().map(|p| json!({"pid": p.tgid.0, "name": p.comm, "role": p.role})).collect();
            json!({"netns": n.netns.0, "why": n.why, "processes": processes})
        })
        .collect();
    let all = json!({
        "schemaVersion": "meshdiff.check/v1",
        "ready": machine.ready(),
        "tier": machine.tier().map(meshdiff_model::ProbeTier::as_str),
        "conclusion": machine.conclusion(),
        "checks": checks,
        "tiers": tiers,
        "namespaces": namespaces,
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;
    use meshdiff_model::{NetnsId, Process, Tgid};

    #[test]
    fn refusals_are_shown_with_their_remedies_and_the_last_line_concludes() {
        let machine = machine([true, false, true]);
        let text = table(&machine);
        assert!(text.contains("the kernel refused it") && text.contains("fix: upgrade"), "{text}");
        assert!(text.contains("work; record would use them"), "{text}");
        assert!(text.contains("not measured: there is no kfree_skb"), "{text}");
        assert_eq!(text.lines().last(), Some(machine.conclusion().as_str()));
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    }

    #[test]
    fn a_process_cannot_write_on_the_terminal() {
        let process = Process {
            tgid: Tgid(7),
            netns: NetnsId(1),
            comm: "\u{1b}[2Jx".to_owned(),
            exe: None,
            uid: None,
            cgroup: None,
            role: ProcessRole::Sidecar,
        };
        let mut machine = machine([false, false, true]);
        let processes = vec![process; NAMED + 2];
        machine.namespaces.push(Namespace { netns: NetnsId(1), why: "it is asked for".to_owned(), processes });
        let text = table(&machine);
        assert!(!text.contains('\u{1b}') && text.contains("(7, the sidecar)") && text.contains("and 2 more"), "{text}");
        let value: Value = serde_json::from_str(&json(&machine)).expect("JSON");
        assert_eq!(value["namespaces"][0]["processes"][0]["role"], "sidecar");
        assert_eq!((value["ready"].as_bool(), value["tier"].as_str()), (Some(true), Some("tp_btf")));
        assert_eq!(value["tiers"][1]["reason"], Value::Null);
        assert_eq!(value["tiers"][0]["unmeasured"][0]["metric"], "drops");
        assert_eq!(value["tiers"][2]["unmeasured"], json!([]));
    }
}
