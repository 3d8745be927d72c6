//! NDJSON: one JSON object per request and line. Schema: `schema/request.v1.json`.

use crate::RenderError;
use crate::safe::harmless_json;
use crate::wire::RequestLine;
use meshdiff_analyzer::AttributedRequest;
use std::io::Write;

/// Writes one request as one line. `instants` adds sockets, crossings and the start on the monotonic clock.
///
/// # Errors
/// If `out` refuses it.
pub fn write_line(request: &AttributedRequest, instants: bool, out: &mut impl Write) -> Result<(), RenderError> {
    line(&RequestLine::of(request, instants, None), out)
}

/// Writes all requests of a list, a line each. With `instants`, the ids of each request's parent and children are there
/// too: `parent` and `children` must index into this list.
///
/// # Errors
/// If `out` refuses it.
pub fn write_lines(requests: &[AttributedRequest], instants: bool, out: &mut impl Write) -> Result<(), RenderError> {
    requests.iter().try_for_each(|request| line(&RequestLine::of(request, instants, Some(requests)), out))
}

fn line(request: &RequestLine<'_>, out: &mut impl Write) -> Result<(), RenderError> {
    out.write_all(harmless_json(serde_json::to_string(request)?).as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}
