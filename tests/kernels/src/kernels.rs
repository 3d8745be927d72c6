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

/// The target of the program in an arm64 machine: static, so that it needs no libraries of another processor.
const ARM64_TARGET: &str = "aarch64-unknown-linux-musl";

/// A program of this package, compiled for arm64; `native` is the same program for this machine. Takes up to a minute when nothing is
/// compiled yet.
///
/// # Errors
/// If cargo does not run or cannot compile it: a sentence that says what to do.
pub fn for_arm64(native: &Path) -> Result<PathBuf, String> {
    let name = native.file_name().ok_or("a program has a name")?;
    let target = native.ancestors().nth(2).ok_or("cargo puts programs into target/debug/")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--locked", "--package", env!("CARGO_PKG_NAME"), "--target", ARM64_TARGET])
        .arg("--bin")
        .arg(name)
        .arg("--target-dir")
        .arg(target)
        // Rust brings it along; the machine needs no compiler for the other processor.
        .arg(format!("--config=target.{ARM64_TARGET}.linker=\"rust-lld\""))
        .output();
    let output = run.map_err(|error| format!("cargo does not run: {error}"))?;
    if output.status.success() {
        return Ok(target.join(ARM64_TARGET).join("debug").join(name));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "the program for arm64 could not be compiled ({}); if its target is missing, run tests/kernels/setup.sh, or set \
         MESHDIFF_SKIP_QEMU=1 to leave the kernel matrix out\n{said}",
        output.status
    ))
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
