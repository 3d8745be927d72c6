//! The statements in `deploy/clickhouse/` are those of the capture's schema.

use meshdiff_capture::clickhouse::{Deployment, schema_sql};

#[test]
fn the_statements_are_up_to_date() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/clickhouse");
    for (file, deployment) in [("schema.sql", Deployment::Single), ("schema-cluster.sql", Deployment::Cluster)] {
        let path = format!("{folder}/{file}");
        let sql = schema_sql(deployment).expect("every column has a type in the store");
        if std::env::var_os("MESHDIFF_UPDATE_DOCS").is_some_and(|v| v == "1") {
            std::fs::create_dir_all(folder).expect("a folder");
            std::fs::write(&path, &sql).expect("written");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == sql,
            "deploy/clickhouse/{file} is not what the schema says: \
             MESHDIFF_UPDATE_DOCS=1 cargo test -p meshdiff-capture --test clickhouse_schema"
        );
    }
}
