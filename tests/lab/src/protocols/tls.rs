//! TLS by the system's own libssl, as an application would do it itself.
//!
//! The library is opened at run time (`dlopen`): building the lab needs no headers of it, and the probes find the same
//! shared object that any other application on this machine maps.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uchar, c_void};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;

use super::http1::Duplex;

const FILETYPE_PEM: c_int = 1;
const ERROR_SYSCALL: c_int = 5;
const ERROR_ZERO_RETURN: c_int = 6;
/// `SSL_CTRL_SET_TLSEXT_HOSTNAME`, behind the macro `SSL_set_tlsext_host_name`.
const SET_HOSTNAME: c_int = 55;

type Pointer = *mut c_void;

/// The functions of libssl that the lab calls, with their C types (ssl.h of OpenSSL 3).
#[derive(Debug)]
struct Library {
    tls_method: unsafe extern "C" fn() -> *const c_void,
    ctx_new: unsafe extern "C" fn(*const c_void) -> Pointer,
    use_chain: unsafe extern "C" fn(Pointer, *const c_char) -> c_int,
    use_key: unsafe extern "C" fn(Pointer, *const c_char, c_int) -> c_int,
    new: unsafe extern "C" fn(Pointer) -> Pointer,
    free: unsafe extern "C" fn(Pointer),
    set_fd: unsafe extern "C" fn(Pointer, c_int) -> c_int,
    ctrl: unsafe extern "C" fn(Pointer, c_int, c_long, Pointer) -> c_long,
    set_alpn: unsafe extern "C" fn(Pointer, *const c_uchar, u32) -> c_int,
    accept: unsafe extern "C" fn(Pointer) -> c_int,
    connect: unsafe extern "C" fn(Pointer) -> c_int,
    read: unsafe extern "C" fn(Pointer, Pointer, c_int) -> c_int,
    write: unsafe extern "C" fn(Pointer, *const c_void, c_int) -> c_int,
    read_ex: unsafe extern "C" fn(Pointer, Pointer, usize, *mut usize) -> c_int,
    write_ex: unsafe extern "C" fn(Pointer, *const c_void, usize, *mut usize) -> c_int,
    shutdown: unsafe extern "C" fn(Pointer) -> c_int,
    get_error: unsafe extern "C" fn(Pointer, c_int) -> c_int,
}

/// Takes a function out of the library.
///
/// # Safety
/// `F` must be the type of a pointer to that function, as ssl.h declares it.
unsafe fn symbol<F: Copy>(handle: Pointer, name: &CStr) -> Result<F, String> {
    const { assert!(size_of::<F>() == size_of::<Pointer>()) };
    // SAFETY: the handle is a loaded library's.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if found.is_null() {
        return Err(format!("it has no {}", name.to_string_lossy()));
    }
    // SAFETY: both are pointers, and the caller vouches for the function's type.
    Ok(unsafe { std::mem::transmute_copy(&found) })
}

impl Library {
    fn open() -> Result<Self, String> {
        // SAFETY: the name ends with a NUL; the library's initialisers are those of OpenSSL, which expect to be loaded.
        let handle = unsafe { libc::dlopen(c"libssl.so.3".as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            return Err("libssl.so.3 is not there (on Debian: apt-get install libssl3)".to_owned());
        }
        // SAFETY: the fields' types are those of ssl.h.
        Ok(unsafe {
            Self {
                tls_method: symbol(handle, c"TLS_method")?,
                ctx_new: symbol(handle, c"SSL_CTX_new")?,
                use_chain: symbol(handle, c"SSL_CTX_use_certificate_chain_file")?,
                use_key: symbol(handle, c"SSL_CTX_use_PrivateKey_file")?,
                new: symbol(handle, c"SSL_new")?,
                free: symbol(handle, c"SSL_free")?,
                set_fd: symbol(handle, c"SSL_set_fd")?,
                ctrl: symbol(handle, c"SSL_ctrl")?,
                set_alpn: symbol(handle, c"SSL_set_alpn_protos")?,
                accept: symbol(handle, c"SSL_accept")?,
                connect: symbol(handle, c"SSL_connect")?,
                read: symbol(handle, c"SSL_read")?,
                write: symbol(handle, c"SSL_write")?,
                read_ex: symbol(handle, c"SSL_read_ex")?,
                write_ex: symbol(handle, c"SSL_write_ex")?,
                shutdown: symbol(handle, c"SSL_shutdown")?,
                get_error: symbol(handle, c"SSL_get_error")?,
            }
        })
    }

    fn get() -> io::Result<&'static Self> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(Self::open).as_ref().map_err(|why| io::Error::other(format!("no TLS: {why}")))
    }
}

/// One side's settings, for the life of the process.
#[derive(Debug)]
pub struct Context {
    ssl: &'static Library,
    raw: Pointer,
}

// SAFETY: an SSL_CTX may be used from several threads at once once it is set up (openssl-threads(7)), and it is never
// changed after `server` or `client` returned.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn new() -> io::Result<Self> {
        let ssl = Library::get()?;
        // SAFETY: TLS_method has no arguments and returns a static method table, which SSL_CTX_new takes.
        let raw = unsafe { (ssl.ctx_new)((ssl.tls_method)()) };
        if raw.is_null() { Err(io::Error::other("SSL_CTX_new failed")) } else { Ok(Self { ssl, raw }) }
    }

    /// For a server with `cert-chain.pem` and `key.pem` of that folder.
    ///
    /// # Errors
    /// Without libssl, or when the files are not what they should be.
    pub fn server(folder: &Path) -> io::Result<Self> {
        let context = Self::new()?;
        let path = |file: &str| CString::new(folder.join(file).as_os_str().as_encoded_bytes());
        let (chain, key) = (path("cert-chain.pem")?, path("key.pem")?);
        // SAFETY: the context is a live SSL_CTX of this library, the paths end with a NUL.
        let fit = unsafe {
            (context.ssl.use_chain)(context.raw, chain.as_ptr()) == 1
                && (context.ssl.use_key)(context.raw, key.as_ptr(), FILETYPE_PEM) == 1
        };
        if fit { Ok(context) } else { Err(io::Error::other("libssl does not take the certificate or its key")) }
    }

    /// For a client that trusts everybody: the lab is about time, not about trust.
    ///
    /// # Errors
    /// Without libssl.
    pub fn client() -> io::Result<Self> {
        Self::new()
    }

    /// Makes the handshake as a server. With `ex`, data goes through `SSL_read_ex` and `SSL_write_ex`.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn accept(&self, stream: TcpStream, ex: bool) -> io::Result<TlsStream> {
        let stream = self.over(stream, ex)?;
        // SAFETY: the SSL is live and has its descriptor.
        let done = unsafe { (stream.ssl.accept)(stream.raw) };
        stream.check(done).map(|_| stream)
    }

    /// Makes the handshake as a client, naming the host and offering HTTP/1.1.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn connect(&self, stream: TcpStream, host: &str, ex: bool) -> io::Result<TlsStream> {
        let stream = self.over(stream, ex)?;
        let host = CString::new(host)?;
        let alpn = b"\x08http/1.1";
        // SAFETY: the SSL is live; libssl copies the name and the protocols.
        let done = unsafe {
            (stream.ssl.ctrl)(stream.raw, SET_HOSTNAME, 0, host.as_ptr().cast_mut().cast());
            (stream.ssl.set_alpn)(stream.raw, alpn.as_ptr(), alpn.len() as u32);
            (stream.ssl.connect)(stream.raw)
        };
        stream.check(done).map(|_| stream)
    }

    fn over(&self, stream: TcpStream, ex: bool) -> io::Result<TlsStream> {
        // SAFETY: the context is live.
        let raw = unsafe { (self.ssl.new)(self.raw) };
        if raw.is_null() {
            return Err(io::Error::other("SSL_new failed"));
        }
        let made = TlsStream { ssl: self.ssl, raw, stream, ex };
        // SAFETY: the SSL is live, and the descriptor lives as long as it does: both are in `made`.
        let set = unsafe { (made.ssl.set_fd)(made.raw, made.stream.as_raw_fd()) };
        if set == 1 { Ok(made) } else { Err(io::Error::other("SSL_set_fd failed")) }
    }
}

/// A connection through libssl.
#[derive(Debug)]
pub struct TlsStream {
    ssl: &'static Library,
    raw: Pointer,
    stream: TcpStream,
    ex: bool,
}

// SAFETY: an SSL may be used by one thread at a time (openssl-threads(7)); it is not Sync, and &mut self is asked for
// wherever it is used after the handshake.
unsafe impl Send for TlsStream {}

impl TlsStream {
    /// What a call's result means: a count, or why there is none.
    fn check(&self, result: c_int) -> io::Result<usize> {
        if result > 0 {
            return Ok(result as usize);
        }
        let system = io::Error::last_os_error();
        // SAFETY: the SSL is live, and this is the thread that made the call.
        match unsafe { (self.ssl.get_error)(self.raw, result) } {
            ERROR_ZERO_RETURN => Ok(0),
            ERROR_SYSCALL => Err(system),
            other => Err(io::Error::other(format!("libssl failed with SSL_get_error {other}"))),
        }
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = 0;
        // SAFETY: the SSL is live, the buffer is as long as is said.
        let result = unsafe {
            if self.ex {
                (self.ssl.read_ex)(self.raw, buffer.as_mut_ptr().cast(), buffer.len(), &raw mut count)
            } else {
                (self.ssl.read)(self.raw, buffer.as_mut_ptr().cast(), buffer.len() as c_int)
            }
        };
        let read = self.check(result)?;
        Ok(if self.ex { count } else { read })
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut count = 0;
        // SAFETY: the SSL is live, the bytes are as many as is said.
        let result = unsafe {
            if self.ex {
                (self.ssl.write_ex)(self.raw, bytes.as_ptr().cast(), bytes.len(), &raw mut count)
            } else {
                (self.ssl.write)(self.raw, bytes.as_ptr().cast(), bytes.len() as c_int)
            }
        };
        let written = self.check(result)?;
        Ok(if self.ex { count } else { written })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex for TlsStream {
    fn finish(&mut self) {
        // SAFETY: the SSL is live. Its result says whether the peer closed too, which nobody waits for.
        unsafe { (self.ssl.shutdown)(self.raw) };
        self.stream.finish();
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // SAFETY: the SSL came from SSL_new and is freed once.
        unsafe { (self.ssl.free)(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn two_ends_understand_each_other_by_both_kinds_of_calls() {
        let folder = tempfile::tempdir().unwrap();
        crate::certs::Authority::new().unwrap().issue("spiffe://cluster.local/ns/default/sa/x", folder.path()).unwrap();
        let server = Context::server(folder.path()).unwrap();
        for ex in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut stream = server.accept(listener.accept().unwrap().0, ex).unwrap();
                    let mut bytes = [0; 100];
                    let read = stream.read(&mut bytes).unwrap();
                    stream.write_all(&bytes[..read]).unwrap();
                    assert_eq!(stream.read(&mut bytes).unwrap(), 0, "the client finishes");
                });
                let client = Context::client().unwrap();
                let mut stream = client.connect(TcpStream::connect(address).unwrap(), "echo", !ex).unwrap();
                stream.write_all(b"hello").unwrap();
                let mut bytes = [0; 5];
                stream.read_exact(&mut bytes).unwrap();
                assert_eq!(&bytes, b"hello");
                stream.finish();
            });
        }
    }
}
