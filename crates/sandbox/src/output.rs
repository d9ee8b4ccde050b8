//! Keeps the beginning and the end of what a command prints, however much that is.

use std::collections::VecDeque;

/// Half of the room for the beginning, half for the end.
#[derive(Debug)]
pub(crate) struct Collector {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    head_room: usize,
    tail_room: usize,
    total: u64,
}

pub(crate) struct Collected {
    pub(crate) output: Vec<u8>,
    pub(crate) bytes_total: u64,
    pub(crate) truncated: bool,
}

impl Collector {
    pub(crate) fn new(kept_bytes: u64) -> Self {
        let kept = usize::try_from(kept_bytes).unwrap_or(usize::MAX);
        let head_room = kept / 2;
        Self { head: Vec::new(), tail: VecDeque::new(), head_room, tail_room: kept - head_room, total: 0 }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_room - self.head.len()));
        self.head.extend_from_slice(first);
        self.tail.extend(&rest[rest.len().saturating_sub(self.tail_room)..]);
        let surplus = self.tail.len().saturating_sub(self.tail_room);
        self.tail.drain(..surplus);
    }

    /// Where the middle is missing a line says how much of it.
    pub(crate) fn finish(self) -> Collected {
        let kept = (self.head.len() + self.tail.len()) as u64;
        let left_out = self.total - kept;
        let mut output = self.head;
        if left_out > 0 {
            output.extend_from_slice(format!("\n[… {left_out} bytes left out …]\n").as_bytes());
        }
        output.extend(self.tail);
        Collected { output, bytes_total: self.total, truncated: left_out > 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(kept: u64, pieces: &[&str]) -> (String, u64, bool) {
        let mut collector = Collector::new(kept);
        for piece in pieces {
            collector.add(piece.as_bytes());
        }
        let collected = collector.finish();
        (String::from_utf8(collected.output).expect("the test prints text"), collected.bytes_total, collected.truncated)
    }

    #[test]
    fn what_fits_is_kept_whole() {
        assert_eq!(collect(10, &["abcde", "fghij"]), ("abcdefghij".to_owned(), 10, false));
    }

    #[test]
    fn the_middle_goes_however_the_pieces_are_cut() {
        let wanted = ("abcd\n[… 5 bytes left out …]\njklm".to_owned(), 13, true);
        assert_eq!(collect(8, &["abcdefghijklm"]), wanted);
        assert_eq!(collect(8, &["ab", "cdefg", "hi", "jklm"]), wanted);
    }
}
