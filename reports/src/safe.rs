//! Names, paths and ids come from outside. Here they are made harmless to read; each exporter then escapes them for
//! its own format.

/// The text with everything shown that would otherwise act instead of being read: control characters (terminal escapes,
/// newlines) and characters that reorder or hide text. They become `\u{1b}`-like escapes.
pub(crate) fn visible(s: &str) -> String {
    if !s.chars().any(acts) {
        return s.to_owned();
    }
    let mut out = String::with_capacity(s.len() + 16);
    for c in s.chars() {
        if acts(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and the format characters with which a text can pretend to be another one (Unicode TR 36 and
/// "Trojan Source", CVE-2021-42574).
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// At most `max` characters (at least 5), cut in the middle, because names differ at both ends.
pub(crate) fn shorten(s: &str, max: usize) -> String {
    let max = max.max(5);
    let len = s.chars().count();
    if len <= max {
        return s.to_owned();
    }
    let head = (max - 1).div_ceil(2);
    let tail = max - 1 - head;
    s.chars().take(head).chain(['…']).chain(s.chars().skip(len - tail)).collect()
}

/// The same JSON with acting characters written as escapes, so that it is harmless on a terminal too (serde_json leaves
/// U+0080 to U+009F as they are, in which terminals find escape sequences). They occur only inside strings, but for the
/// newlines of indented JSON.
pub(crate) fn harmless_json(json: String) -> String {
    let harmful = |c: char| c != '\n' && acts(c);
    if !json.chars().any(harmful) {
        return json;
    }
    escape_json(&json, harmful)
}

/// JSON that can stand inside `<script type="application/json">`: nothing in it can end the element.
pub(crate) fn json_in_html(json: &str) -> String {
    escape_json(json, |c| matches!(c, '<' | '>' | '&') || acts(c))
}

fn escape_json(json: &str, escaped: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(json.len() + json.len() / 16);
    for c in json.chars() {
        if escaped(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn acting_characters_are_shown() {
        assert_eq!(visible("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\u{a}b");
        assert_eq!(visible("exe.\u{202e}gpj"), "exe.\\u{202e}gpj");
        assert_eq!(visible("größe/日本/مرحبا"), "größe/日本/مرحبا");
    }

    #[test]
    fn long_names_are_cut_in_the_middle() {
        assert_eq!(shorten("productpage-v1", 20), "productpage-v1");
        assert_eq!(shorten("productpage-v1", 9), "prod…e-v1");
        assert_eq!(shorten("äöüäöüäöü", 5), "äö…öü");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_is_left(s in any::<String>()) {
            prop_assert!(!visible(&s).chars().any(acts));
        }

        #[test]
        fn embedded_json_means_the_same(s in any::<String>()) {
            let json = serde_json::to_string(&s).expect("a string serialises");
            let embedded = json_in_html(&json);
            prop_assert!(!embedded.contains(['<', '>', '&']) && !embedded.chars().any(acts));
            let harmless = harmless_json(json);
            prop_assert!(!harmless.chars().any(acts));
            prop_assert_eq!(serde_json::from_str::<String>(&harmless).expect("still JSON"), s.clone());
            prop_assert_eq!(serde_json::from_str::<String>(&embedded).expect("still JSON"), s);
        }

        #[test]
        fn shortened_texts_fit(s in any::<String>(), max in 5usize..40) {
            prop_assert!(shorten(&s, max).chars().count() <= max);
        }
    }
}
