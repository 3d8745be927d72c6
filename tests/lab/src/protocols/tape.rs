//! Which call moved which byte of a connection's one direction.

use std::io::{self, Read, Write};

use crate::clock::MonotonicNs;
use crate::truth::Mark;

/// The calls of one direction, in order.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    /// The offset behind the last byte of a call, and the call.
    calls: Vec<(u64, Mark)>,
}

impl Tape {
    /// Notes a call that moved `count` bytes.
    pub fn push(&mut self, count: usize, mark: Mark) {
        if count > 0 {
            self.calls.push((self.total() + count as u64, mark));
        }
    }

    /// Bytes moved so far.
    pub fn total(&self) -> u64 {
        self.calls.last().map_or(0, |(end, _)| *end)
    }

    /// The call that moved the byte at this offset.
    pub fn at(&self, offset: u64) -> Option<Mark> {
        let i = self.calls.partition_point(|(end, _)| *end <= offset);
        self.calls.get(i).map(|(_, mark)| *mark)
    }
}

/// Does something with the instants around it.
pub fn stamped<T>(work: impl FnOnce() -> T) -> (T, Mark) {
    let before = MonotonicNs::now();
    let done = work();
    (done, Mark { before, after: MonotonicNs::now() })
}

/// A connection whose calls are written down.
#[derive(Debug)]
pub struct Taped<S> {
    stream: S,
    /// Of what was written.
    pub written: Tape,
    /// Of what was read.
    pub read: Tape,
    buffer: Vec<u8>,
    /// Bytes of `read` that were taken out of the buffer.
    taken: u64,
}

impl<S: Read + Write> Taped<S> {
    /// Wraps a connection at its very begin.
    pub fn new(stream: S) -> Self {
        Self { stream, written: Tape::default(), read: Tape::default(), buffer: Vec::new(), taken: 0 }
    }

    /// The connection.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Writes everything, in as few calls as the kernel lets it.
    ///
    /// # Errors
    /// As `write` does.
    pub fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (written, mark) = stamped(|| self.stream.write(bytes));
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written.push(count, mark);
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once, at most `most` bytes, behind what is in memory; `false` at the stream's end.
    ///
    /// # Errors
    /// As `read` does.
    pub fn receive(&mut self, most: usize) -> io::Result<bool> {
        let kept = self.buffer.len();
        self.buffer.resize(kept + most, 0);
        loop {
            let (read, mark) = stamped(|| self.stream.read(&mut self.buffer[kept..]));
            match read {
                Ok(count) => {
                    self.buffer.truncate(kept + count);
                    self.read.push(count, mark);
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.buffer.truncate(kept);
                    return Err(error);
                }
            }
        }
    }

    /// What was read and not taken yet.
    pub fn pending(&self) -> &[u8] {
        &self.buffer
    }

    /// The offset of the first byte of [`Self::pending`].
    pub fn position(&self) -> u64 {
        self.taken
    }

    /// Takes bytes out.
    pub fn take(&mut self, count: usize) {
        let count = count.min(self.buffer.len());
        self.buffer.drain(..count);
        self.taken += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_has_the_call_that_moved_it() {
        let mark = |t| Mark { before: MonotonicNs(t), after: MonotonicNs(t + 1) };
        let mut tape = Tape::default();
        assert_eq!(tape.at(0), None);
        tape.push(10, mark(1));
        tape.push(0, mark(2));
        tape.push(1, mark(3));
        for (offset, expected) in [(0, Some(1)), (9, Some(1)), (10, Some(3)), (11, None)] {
            assert_eq!(tape.at(offset), expected.map(mark), "{offset}");
        }
    }
}
