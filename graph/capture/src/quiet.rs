//! Catches panics of code that reads hostile bytes, without their message on the terminal.

use std::cell::Cell;
use std::panic::{self, UnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; if it panics, returns the panic's message.
///
/// The parquet crate checks most of what it reads, but a damaged file can still lead it to an index out of bounds or to an
/// `unwrap` (its own issue tracker has such cases, fixed one by one). One damaged part must not end a report. The hook
/// stays silent for this thread only while `f` runs, and is the one that was there before for everyone else.
pub(crate) fn catch<T>(f: impl FnOnce() -> T + UnwindSafe) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    QUIET.set(true);
    let result = panic::catch_unwind(f);
    QUIET.set(false);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(super::catch(|| 1), Ok(1));
        assert_eq!(super::catch(|| -> u8 { panic!("index {} of 3", 5) }), Err("index 5 of 3".to_owned()));
    }
}
