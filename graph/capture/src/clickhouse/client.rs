//! Asks a ClickHouse over its HTTP interface.

use super::error::StoreError;
use super::url::StoreUrl;
use crate::http::{Answer, HttpClient};
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use std::time::Duration;

/// Inserts and small questions.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Questions whose answer is data.
const LONG_TIMEOUT: Duration = Duration::from_secs(600);
/// An answer larger than this was asked for in too large steps.
const MAX_ANSWER: usize = 1 << 30;
/// What an error's text may have.
const MAX_TEXT: usize = 600;

/// A statement with values in it: `{name:Type}` stands for a value that is sent beside it and never becomes a part of its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) sql: String,
    parameters: Vec<(String, String)>,
    settings: Vec<(&'static str, String)>,
}

impl Query {
    pub(crate) fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), ..Self::default() }
    }
    /// Gives a value to `{name:String}`, or to a number's.
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.parameters.push((format!("param_{name}"), escaped(&value.to_string())));
        self
    }
    pub(crate) fn setting(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }
}

/// As ClickHouse reads a parameter's value: the way that a tab-separated file's is written.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\0' => text.push_str("\\0"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c => text.push(c),
        }
    }
    text
}

#[derive(Debug)]
pub(crate) struct Client {
    http: HttpClient,
    url: StoreUrl,
}

impl Client {
    pub(crate) fn new(url: StoreUrl) -> Result<Self, StoreError> {
        Ok(Self { http: HttpClient::new(url.ca())?, url })
    }

    pub(crate) fn url(&self) -> &StoreUrl {
        &self.url
    }

    /// A statement without data.
    pub(crate) fn run(&self, query: &Query) -> Result<Bytes, StoreError> {
        self.send(query, None, TIMEOUT)
    }

    /// A question whose answer is data.
    pub(crate) fn select(&self, query: &Query) -> Result<Bytes, StoreError> {
        // Without waiting for the end, an error after the first bytes would come as a part of the data.
        let query = query.clone().setting("wait_end_of_query", 1);
        self.send(&query, None, LONG_TIMEOUT)
    }

    /// A statement and its data.
    pub(crate) fn insert(&self, query: &Query, data: Bytes) -> Result<(), StoreError> {
        self.send(query, Some(data), TIMEOUT).map(drop)
    }

    fn send(&self, query: &Query, data: Option<Bytes>, timeout: Duration) -> Result<Bytes, StoreError> {
        let mut parameters = vec![("database".to_owned(), self.url.database().to_owned())];
        parameters.extend(query.settings.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        parameters.extend(query.parameters.iter().cloned());
        let body = match data {
            Some(data) => {
                parameters.push(("query".to_owned(), query.sql.clone()));
                data
            }
            None => Bytes::from(query.sql.clone()),
        };
        let uri = self.url.request(&parameters)?;
        let answer = self.http.post(uri, self.credentials()?, body, timeout, MAX_ANSWER)?;
        if answer.status.is_success() && exception_code(&answer).is_none() {
            return Ok(answer.body);
        }
        Err(self.refused(&answer))
    }

    /// In headers, which no access log and no `system.query_log` shows.
    fn credentials(&self) -> Result<Vec<(HeaderName, HeaderValue)>, StoreError> {
        let header = |name: &'static str, text: &str| {
            let mut value = HeaderValue::from_str(text).map_err(|_| StoreError::BadCredentials)?;
            value.set_sensitive(true);
            Ok::<_, StoreError>((HeaderName::from_static(name), value))
        };
        Ok(vec![header("x-clickhouse-user", self.url.user())?, header("x-clickhouse-key", self.url.password())?])
    }

    fn refused(&self, answer: &Answer) -> StoreError {
        let text = String::from_utf8_lossy(&answer.body);
        let mut text: String =
            text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
        // A server that repeats what it was sent must not make us log it.
        if !self.url.password().is_empty() {
            text = text.replace(self.url.password(), "***");
        }
        StoreError::Refused {
            store: self.url.to_string(),
            status: answer.status.as_u16(),
            code: exception_code(answer),
            text,
        }
    }
}

fn exception_code(answer: &Answer) -> Option<u32> {
    answer.headers.get("x-clickhouse-exception-code")?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_clickhouse_reads_them() {
        assert_eq!(escaped("a'b{c}`\\\t\n"), "a'b{c}`\\\\\\t\\n");
        let query = Query::new("SELECT {x:String}").with("x", "1' OR 1").setting("max_threads", 1);
        assert_eq!(query.sql, "SELECT {x:String}");
        assert_eq!(query.parameters, [("param_x".to_owned(), "1' OR 1".to_owned())]);
    }
}
