//! The README's tables are those of the schema. `MESHDIFF_UPDATE_DOCS=1` writes them.

use std::fs;

const BEGIN: &str = "<!-- schema: begin -->\n";
const END: &str = "<!-- schema: end -->";

#[test]
fn the_documented_columns_are_the_schema() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(path).expect("README.md");
    let begin = readme.find(BEGIN).expect("the begin mark") + BEGIN.len();
    let end = readme.find(END).expect("the end mark");
    let expected = meshdiff_capture::schema_markdown();
    if std::env::var_os("MESHDIFF_UPDATE_DOCS").is_some() {
        let updated = format!("{}{}{}", &readme[..begin], expected, &readme[end..]);
        fs::write(path, updated).expect("written");
        return;
    }
    assert!(
        readme[begin..end] == expected,
        "the schema's tables in README.md are out of date: run MESHDIFF_UPDATE_DOCS=1 cargo test -p meshdiff-capture --test readme"
    );
}

#[test]
fn every_column_says_what_it_means_and_times_say_their_unit() {
    for table in meshdiff_capture::Table::ALL {
        for column in table.columns() {
            assert!(!column.meaning.is_empty(), "{table}.{}", column.name);
            assert!(!column.name.ends_with("_ns") || column.unit.starts_with("ns"), "{table}.{}", column.name);
            assert!(!column.meaning.contains('|') && !column.unit.contains('|'), "{table}.{}", column.name);
        }
    }
}
