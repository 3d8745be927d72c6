//! Where the kernels are that `setup.sh` fetched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The kernels of the matrix: the series' names, as `setup.sh` knows them.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

/// The image of a series' kernel; fetched if it is not there.
///
/// # Errors
/// If it is not there and cannot be fetched: a sentence that says what to do.
pub fn image(series: &str) -> Result<PathBuf, String> {
    static FETCHING: Mutex<()> = Mutex::new(());
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let image = package.join("../../.cache/kernels").join(series).join("vmlinuz");
    // A panic elsewhere does not make half an image: setup.sh puts it into place by rename.
    let _alone = FETCHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if image.exists() {
        return Ok(image);
    }
    let setup = package.join("setup.sh");
    let run = Command::new(&setup).status();
    match run {
        Ok(status) if status.success() && image.exists() => Ok(image),
        Ok(status) => Err(format!(
            "there is no kernel of the series {series}, and tests/kernels/setup.sh could not fetch one ({status}); run it by hand, \
             or set MESHDIFF_SKIP_QEMU=1 to leave the kernel matrix out"
        )),
        Err(error) => Err(format!("{} does not run: {error}", setup.display())),
    }
}
