//! What happens to a stream of bytes between a node and our output: nothing, or whole lines with a prefix.

/// A line that grows beyond this many bytes is written in parts.
const LINE_MAX: usize = 1 << 20;

/// Shapes one stream.
#[derive(Debug)]
pub(crate) enum Shaper {
    /// Bytes pass as they come.
    Raw,
    /// Whole lines; the last one gets a newline if it has none.
    Lines {
        /// Stands before each line.
        prefix: Vec<u8>,
        /// The line that has not ended yet.
        held: Vec<u8>,
        /// A part of the line was written already, prefix included.
        started: bool,
    },
}

impl Shaper {
    /// Whole lines, each after `prefix`.
    pub(crate) fn lines(prefix: Vec<u8>) -> Shaper {
        Shaper::Lines { prefix, held: Vec::new(), started: false }
    }

    /// Takes what came and appends what may be written to `out`.
    pub(crate) fn push(&mut self, mut data: &[u8], out: &mut Vec<u8>) {
        let Shaper::Lines { prefix, held, started } = self else {
            out.extend_from_slice(data);
            return;
        };
        let begin = |out: &mut Vec<u8>, started: bool| {
            if !started {
                out.extend_from_slice(prefix);
            }
        };
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            begin(out, *started);
            out.append(held);
            out.extend_from_slice(&data[..=end]);
            *started = false;
            data = &data[end + 1..];
        }
        held.extend_from_slice(data);
        if held.len() > LINE_MAX {
            begin(out, *started);
            out.append(held);
            *started = true;
        }
    }

    /// The stream has ended: appends what was held back.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        if let Shaper::Lines { held, started, .. } = self
            && (*started || !held.is_empty())
        {
            self.push(b"\n", out);
        }
    }
}

/// `%3d: `
pub(crate) fn prefix(node: i32) -> Vec<u8> {
    format!("{node:3}: ").into_bytes()
}

/// Stands before the output of a node: number, TAB, 69 dashes.
pub(crate) fn divider(node: i32) -> Vec<u8> {
    format!("{node}\t{}\n", "-".repeat(69)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(mut shaper: Shaper, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            shaper.push(piece, &mut out);
        }
        shaper.finish(&mut out);
        out
    }

    #[test]
    fn raw_bytes_pass() {
        assert_eq!(shaped(Shaper::Raw, &[b"a", b"\0b\n", b"c"]), b"a\0b\nc");
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..text.len() {
            let pieces: Vec<&[u8]> = text.chunks(size).collect();
            let got = shaped(Shaper::lines(prefix(7)), &pieces);
            assert_eq!(got, b"  7: one\n  7: \n  7: two\n  7: three\n");
        }
        assert_eq!(shaped(Shaper::lines(Vec::new()), &[b"x\n"]), b"x\n");
        assert_eq!(shaped(Shaper::lines(prefix(1)), &[]), b"");
    }

    #[test]
    fn no_part_of_a_line_before_its_end() {
        let (mut shaper, mut out) = (Shaper::lines(Vec::new()), Vec::new());
        shaper.push(b"a\nbc", &mut out);
        assert_eq!(out, b"a\n");
    }

    #[test]
    fn an_endless_line_is_written_in_parts_with_one_prefix() {
        let big = vec![b'x'; LINE_MAX];
        let got = shaped(Shaper::lines(prefix(0)), &[&big, &big, &big]);
        assert_eq!(got.len(), 3 * LINE_MAX + 6);
        assert!(got.starts_with(b"  0: x") && got.ends_with(b"x\n"));
    }

    #[test]
    fn looks() {
        assert_eq!(prefix(12), b" 12: ");
        let line = divider(3);
        assert!(line.starts_with(b"3\t---") && line.len() == 2 + 69 + 1);
    }
}
