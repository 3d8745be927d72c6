//! A TUN device: the packets that the kernel routes into it are read from a file, and the other way round.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

mod sys {
    use nix::libc;

    // The macro makes a public function; the module keeps it in here.
    nix::ioctl_write_ptr_bad!(
        /// TUNSETIFF of tun(4): names and types the device behind the descriptor.
        tun_set_iff,
        libc::TUNSETIFF,
        libc::ifreq
    );
}

/// Makes a TUN device in the network namespace of the calling thread. It lives as long as the file is open.
///
/// # Errors
/// When there is no `/dev/net/tun`, the name is taken or too long, or the caller is not root.
pub fn open(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut ifr_name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is too long for a link's name")));
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // Whole IP packets without a header in front; no offloads, so checksums are complete and no packet exceeds the MTU.
    let ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: the descriptor is open for the time of the call, and `request` is a whole `struct ifreq` that TUNSETIFF
    // reads name and flags of.
    unsafe { sys::tun_set_iff(file.as_raw_fd(), &request) }?;
    Ok(file)
}
