//! Writes what two nodes would have recorded of so many requests: two captures, `node-a` and `node-b`, in a folder.
//!
//! ```text
//! cargo run -p meshdiff-capture --example mesh -- REQUESTS FOLDER [NODES]
//! meshdiff report --capture FOLDER/node-a --capture FOLDER/node-b
//! ```
//!
//! Every request crosses from a pod of one node to a pod of the other, so that each node has one half of it. 2,000 requests a second on connections
//! that are kept and closed now and then; one in four is made while another one is served; of two clients in twenty the applications speak HTTP/2.
//! The nodes' monotonic clocks have nothing to do with each other. With 1 for NODES all pods are on one node, in `node-a`.
//!
//! Times and sizes are random, and the same in each run. All that the joins need is there and nothing is lost: each request can be told whole.

mod traffic;
mod wire;

use meshdiff_capture::CaptureError;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let requests = arguments.next().and_then(|n| n.to_str()?.parse().ok());
    let folder = arguments.next().map(PathBuf::from);
    let nodes = arguments.next().map_or(Some(2), |n| n.to_str()?.parse().ok()).filter(|n| (1..=2).contains(n));
    let (Some(requests), Some(folder), Some(nodes)) = (requests, folder, nodes) else {
        eprintln!("usage: mesh REQUESTS FOLDER [1|2]");
        return ExitCode::FAILURE;
    };
    match write(requests, &folder, nodes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write(requests: u64, folder: &std::path::Path, nodes: usize) -> Result<(), CaptureError> {
    let mut mesh = traffic::Mesh::new(wire::Wire::create(folder, nodes)?);
    mesh.drive(requests)?;
    let seconds = mesh.finish()?;
    println!("{requests} requests in {seconds} s, in {}", folder.display());
    Ok(())
}
