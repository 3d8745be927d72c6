//! JSON, NDJSON, Markdown and the table: snapshots, schemas, hostile data, emptiness, determinism.

use crate::support::{HOSTILE, bookinfo, empty, hostile, limited, meta, simulate};
use meshdiff_analyzer::Report;
use meshdiff_reports::{ReportMeta, html, json, markdown, requests, table};
use serde_json::Value;

fn small() -> Report {
    let mut report = simulate(&bookinfo()[..], 3);
    report.findings = crate::support::findings();
    report.slowest.truncate(1);
    report.slowest[0].children.clear();
    // A line that both ends were seen of, and one to the outside.
    let outside = report.lines.pop();
    report.lines.truncate(1);
    report.lines.extend(outside);
    report
}

fn text(write: impl FnOnce(&mut Vec<u8>) -> Result<(), meshdiff_reports::RenderError>) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("a vector takes everything");
    String::from_utf8(out).expect("UTF-8")
}

fn as_table(report: &Report, options: &table::TableOptions) -> String {
    text(|out| table::write(report, &meta(), options, out))
}

fn every_format(report: &Report, meta: &ReportMeta) -> [String; 6] {
    let options = |width, colour, wide| table::TableOptions { width, colour, wide };
    [
        text(|out| html::write(report, meta, out)),
        text(|out| json::write(report, meta, out)),
        text(|out| markdown::write(report, meta, out)),
        text(|out| table::write(report, meta, &options(Some(80), false, false), out)),
        text(|out| table::write(report, meta, &options(None, true, true), out)),
        text(|out| requests::write_lines(&report.slowest, true, out)),
    ]
}

#[test]
fn snapshots() {
    let report = small();
    insta::assert_snapshot!("json", text(|out| json::write(&report, &meta(), out)));
    insta::assert_snapshot!("markdown", text(|out| markdown::write(&report, &meta(), out)));
    insta::assert_snapshot!("request", text(|out| requests::write_line(&report.slowest[0], false, out)));
    insta::assert_snapshot!("request_instants", text(|out| requests::write_line(&report.slowest[0], true, out)));
    let options = |width, wide| table::TableOptions { width, colour: false, wide };
    insta::assert_snapshot!("table_80", as_table(&report, &options(Some(80), false)));
    insta::assert_snapshot!("table_120", as_table(&report, &options(Some(120), false)));
    insta::assert_snapshot!("table_pipe", as_table(&report, &options(None, false)));
    insta::assert_snapshot!("table_wide", as_table(&report, &options(Some(180), true)));
    insta::assert_snapshot!("table_limited", as_table(&limited(), &options(Some(100), false)));
    insta::assert_snapshot!("markdown_limited", text(|out| markdown::write(&limited(), &meta(), out)));
    insta::assert_snapshot!("table_empty", as_table(&empty(), &options(Some(80), false)));
    insta::assert_snapshot!("markdown_empty", text(|out| markdown::write(&empty(), &meta(), out)));
    insta::assert_snapshot!("json_empty", text(|out| json::write(&empty(), &meta(), out)));
}

fn schema(text: &str) -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(text).expect("the schema is JSON");
    jsonschema::draft202012::new(&schema).expect("the schema is a schema")
}

#[track_caller]
fn assert_valid(validator: &jsonschema::Validator, instance: &Value) {
    let errors: Vec<_> = validator.iter_errors(instance).take(5).map(|e| format!("{}: {e}", e.instance_path)).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn reports_follow_their_schema() {
    let validator = schema(include_str!("../../schema/report.v1.json"));
    for report in [small(), empty(), limited(), hostile()] {
        let mut instance: Value = serde_json::from_str(&text(|out| json::write(&report, &meta(), out))).expect("JSON");
        assert_valid(&validator, &instance);
        let coverage = &instance["coverage"];
        let count = |v: &Value| v.as_u64().expect("a count");
        let partial: u64 = ["client", "server", "als"].iter().map(|k| count(&coverage["partial"][k])).sum();
        let unmatched: u64 = coverage["unmatched"].as_object().expect("a map").values().map(count).sum();
        if report.namespace.is_none() {
            assert_eq!(
                count(&coverage["requests"]),
                count(&coverage["full"]) + partial + count(&coverage["ambiguous"]) + unmatched
            );
        }
        // The schema is strict: a field that nobody documented is refused.
        instance["surprise"] = Value::Null;
        assert!(!validator.is_valid(&instance));
    }
}

#[test]
fn request_lines_follow_their_schema_and_sum() {
    let validator = schema(include_str!("../../schema/request.v1.json"));
    let report = simulate(&bookinfo(), 5);
    for instants in [false, true] {
        let lines = text(|out| requests::write_lines(&report.slowest, instants, out));
        assert_eq!(lines.lines().count(), report.slowest.len());
        for line in lines.lines() {
            let request: Value = serde_json::from_str(line).expect("JSON");
            assert_valid(&validator, &request);
            let sum: i64 = request["segments"].as_object().expect("a map").values().filter_map(Value::as_i64).sum();
            assert_eq!(request["totalNs"].as_i64(), Some(sum));
            assert_eq!(request.get("crossings").is_some(), instants);
        }
    }
}

#[test]
fn parents_and_children_are_named_by_their_ids() {
    let report = simulate(&bookinfo(), 2);
    let lines = text(|out| requests::write_lines(&report.slowest, true, out));
    let requests: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let child = &requests[1];
    assert_eq!(child["parentId"], requests[0]["id"]);
    assert!(requests[0]["childIds"].as_array().expect("a list").contains(&child["id"]));
    // Alone, a request cannot know their ids, and then says nothing of them.
    let alone: Value =
        serde_json::from_str(&text(|out| requests::write_line(&report.slowest[1], true, out))).expect("JSON");
    assert!(alone.get("parentId").is_none() && alone.get("childIds").is_none());
}

#[test]
fn hostile_data_stays_data() {
    let [page, document, md, narrow, wide, lines] = every_format(&hostile(), &meta());
    // JSON holds the names as they are: they come back unchanged.
    let value: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!(value["namespace"], HOSTILE);
    assert!(!document.chars().any(|c| c != '\n' && c.is_control() || c == '\u{202e}'));
    assert!(lines.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()));
    // HTML: no element of theirs, and no control character.
    assert!(!page.contains("<img"), "an element came through");
    assert_eq!(page.matches("</script").count(), 2, "only the page's own scripts end");
    assert!(!page.chars().any(|c| c == '\u{1b}' || c == '\u{202e}' || c == '\u{7}'));
    assert!(page.contains("größe 日本 مرحبا"));
    // Markdown: no markup of theirs, one line for each row.
    assert!(!md.contains("<img") && !md.contains('\u{1b}') && !md.contains("</script>"));
    let columns = |row: &str| row.matches('|').count();
    let all_lines: Vec<_> = md.lines().collect();
    let tables: Vec<_> = all_lines.split(|l| !l.starts_with('|')).filter(|rows| !rows.is_empty()).collect();
    assert_eq!(tables.len(), 6, "hops, four breakdowns and connections");
    for rows in tables {
        assert!(rows.len() > 2 && rows.iter().all(|r| columns(r) == columns(rows[0])), "{rows:#?}");
    }
    // Terminal: no escape but our own.
    assert!(!narrow.chars().any(|c| c.is_control() && c != '\n'), "{narrow:?}");
    let ours = ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[2m", "\u{1b}[31m", "\u{1b}[33m"];
    let stripped = ours.iter().fold(wide, |w, code| w.replace(code, ""));
    assert!(!stripped.chars().any(|c| c.is_control() && c != '\n'), "{stripped:?}");
}

#[test]
fn lines_fit_the_terminal() {
    for width in [60, 80, 120] {
        let broken_down = crate::support::broken_down(&bookinfo()[..], 20, &meshdiff_analyzer::Dimension::ALL);
        for report in [small(), limited(), empty(), broken_down] {
            let out = as_table(&report, &table::TableOptions { width: Some(width), colour: false, wide: false });
            for line in out.lines() {
                assert!(line.chars().count() <= usize::from(width), "{width}: {line}");
            }
        }
    }
}

#[test]
fn same_report_same_bytes() {
    for report in [small(), limited(), empty(), simulate(&crate::support::forty(), 60)] {
        assert!(every_format(&report, &meta()) == every_format(&report, &meta()));
    }
}

#[test]
fn nothing_is_said_of_nothing() {
    for text in every_format(&empty(), &meta()).iter().take(4) {
        assert!(text.contains("Too little data to say where the time went"), "{text}");
        assert!(text.contains("no request was recorded"), "{text}");
        assert!(!text.contains("NaN"), "{text}");
    }
}

#[test]
fn a_refusing_output_is_reported() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let report = small();
    let options = table::TableOptions::default();
    for result in [
        html::write(&report, &meta(), &mut Full),
        json::write(&report, &meta(), &mut Full),
        markdown::write(&report, &meta(), &mut Full),
        table::write(&report, &meta(), &options, &mut Full),
        requests::write_lines(&report.slowest, true, &mut Full),
    ] {
        assert!(
            matches!(&result, Err(meshdiff_reports::RenderError::Write(e)) if e.kind() == std::io::ErrorKind::StorageFull),
            "{result:?}"
        );
    }
}
