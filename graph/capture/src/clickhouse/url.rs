//! Where a store is: `clickhouse://user:password@host:8123/database`.

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Everything but what a query's value can hold as it is.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where a ClickHouse is, and as whom to ask it. Shown and logged without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    host: String,
    port: u16,
    secure: bool,
    database: String,
    user: String,
    password: String,
    ca: Option<PathBuf>,
}

/// A text that names no store. Does not repeat the text: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no store's address ({0}): it looks like clickhouse://USER:PASSWORD@HOST:8123/DATABASE, with ?secure=true for HTTPS and ca=FILE for a private authority"
)]
pub struct BadStoreUrl(String);

impl FromStr for StoreUrl {
    type Err = BadStoreUrl;

    fn from_str(text: &str) -> Result<Self, BadStoreUrl> {
        let bad = |why: &str| BadStoreUrl(why.to_owned());
        let rest = text.strip_prefix("clickhouse://").ok_or_else(|| bad("it does not begin with clickhouse://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, at) = match authority.rsplit_once('@') {
            Some((user, at)) => (user, at),
            None => ("default", authority),
        };
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let (mut secure, mut ca) = (false, None);
        for (key, value) in query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
            match (key, value) {
                ("secure", "true" | "1") => secure = true,
                ("secure", "false" | "0") => secure = false,
                ("ca", path) if !path.is_empty() => ca = Some(PathBuf::from(decoded(path).map_err(|e| bad(&e))?)),
                _ => return Err(bad("it has an option that is not known")),
            }
        }
        let authority: http::uri::Authority = at.parse().map_err(|_| bad("its host or port is none"))?;
        if authority.host().is_empty() {
            return Err(bad("its host is missing"));
        }
        // A port that is no number is none for `Authority`, and would be taken for the default.
        let port = authority.port_u16();
        if port.is_none() && authority.as_str() != authority.host() {
            return Err(bad("its port is no number from 0 to 65535"));
        }
        let named = |text: &str, or: &str| {
            let text = decoded(text).map_err(|e| bad(&e))?;
            Ok(if text.is_empty() { or.to_owned() } else { text })
        };
        let database = named(database.trim_end_matches('/'), "meshdiff")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !database.chars().all(plain) {
            return Err(bad("its database has other characters than letters, digits, _ and -"));
        }
        Ok(Self {
            host: authority.host().to_owned(),
            port: port.unwrap_or(if secure { 8443 } else { 8123 }),
            secure,
            database,
            user: named(user, "default")?,
            password: decoded(password).map_err(|e| bad(&e))?,
            ca,
        })
    }
}

fn decoded(text: &str) -> Result<String, String> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| "a part of it is no UTF-8".to_owned())
}

impl StoreUrl {
    /// With this password, where the address has none.
    #[must_use]
    pub fn or_password(mut self, password: &str) -> Self {
        if self.password.is_empty() {
            password.clone_into(&mut self.password);
        }
        self
    }
    /// The database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }
    /// The user.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }
    /// The user's password.
    pub(crate) fn password(&self) -> &str {
        &self.password
    }
    /// Whom to trust.
    pub(crate) fn ca(&self) -> Option<&std::path::Path> {
        self.ca.as_deref()
    }
    /// The address of a request with these parameters.
    pub(crate) fn request(&self, parameters: &[(String, String)]) -> Result<Uri, BadStoreUrl> {
        let mut text = format!("{}://{}:{}/?", if self.secure { "https" } else { "http" }, self.host, self.port);
        for (i, (key, value)) in parameters.iter().enumerate() {
            if i > 0 {
                text.push('&');
            }
            text.extend(utf8_percent_encode(key, VALUE));
            text.push('=');
            text.extend(utf8_percent_encode(value, VALUE));
        }
        text.parse().map_err(|_| BadStoreUrl("a query is too long".to_owned()))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clickhouse://{}:{}/{}", self.host, self.port, self.database)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_and_the_password_is_never_shown() {
        let url: StoreUrl =
            "clickhouse://re%40der:s%3Acret@db.example:9000/mesh?secure=true&ca=/etc/ca.pem".parse().expect("good");
        assert_eq!((url.user(), url.password(), url.database()), ("re@der", "s:cret", "mesh"));
        assert_eq!(url.ca(), Some(std::path::Path::new("/etc/ca.pem")));
        for shown in [format!("{url}"), format!("{url:?}")] {
            assert_eq!(shown, "clickhouse://db.example:9000/mesh");
        }
        let request = url.request(&[("param_ns".into(), "a' &\\b".into())]).expect("an address");
        assert_eq!(request.to_string(), "https://db.example:9000/?param_ns=a%27%20%26%5Cb");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let url: StoreUrl = "clickhouse://db".parse().expect("good");
        assert_eq!((url.user(), url.password(), url.database(), url.port), ("default", "", "meshdiff", 8123));
        let url: StoreUrl = "clickhouse://[::1]:1/".parse().expect("good");
        assert_eq!(url.request(&[]).expect("an address").host(), Some("[::1]"));
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for bad in [
            "http://u:hunter2@db",
            "clickhouse://u:hunter2@",
            "clickhouse://u:hunter2@db:port",
            "clickhouse://u:hunter2@db:65536",
            "clickhouse://u:hunter2@db/a`b",
            "clickhouse://u:hunter2@db/x?secure=perhaps",
            "clickhouse://u:hunter2%ff@db/x",
        ] {
            let error = bad.parse::<StoreUrl>().expect_err(bad).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
