//! Where the kernels are that `setup.sh` fetched.

use crate::network::LINK_MODULES;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The image of a kernel, by the name that `setup.sh` knows it by; fetched if it is not there. Its modules are beside it.
///
/// # Errors
/// If it is not there and cannot be fetched: a sentence that says what to do.
pub fn image(name: &str) -> Result<PathBuf, String> {
    static FETCHING: Mutex<()> = Mutex::new(());
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let image = folder(name).join("vmlinuz");
    // A panic elsewhere does not make half an image: setup.sh puts it into place by rename.
    let _alone = FETCHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let whole = || image.exists() && LINK_MODULES.iter().all(|module| self::module(name, module).exists());
    if whole() {
        return Ok(image);
    }
    let setup = package.join("setup.sh");
    let run = Command::new(&setup).arg(name).status();
    match run {
        Ok(status) if status.success() && whole() => Ok(image),
        Ok(status) => Err(format!(
            "there is no kernel {name}, and tests/kernels/setup.sh could not fetch one ({status}); run it by hand, \
             or set MESHDIFF_SKIP_QEMU=1 to leave the kernel matrix out"
        )),
        Err(error) => Err(format!("{} does not run: {error}", setup.display())),
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/kernels").join(name)
}

/// A module of a kernel.
#[must_use]
pub fn module(name: &str, module: &str) -> PathBuf {
    folder(name).join(format!("{module}.ko"))
}

/// Where a program of this machine is; system administrators' are not on everybody's path.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|folder| folder.join(name)).find(|p| p.exists())
}
