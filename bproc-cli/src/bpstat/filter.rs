//! `bpstat -P`: what ps prints, with the node before each line. Pure.

/// Where the header says that pids stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    /// Offset after the last letter of the title: pids are right-aligned to it.
    end: usize,
    /// Which word of the line it is, should a wide entry before it have moved it.
    word: usize,
}

/// Words of a line with the offsets at which they end.
fn words(line: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    line.split(|b| b.is_ascii_whitespace()).filter_map(move |word| {
        let end = at + word.len();
        at = end + 1;
        (!word.is_empty()).then_some((end, word))
    })
}

fn number(word: &[u8]) -> Option<i32> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Finds the column in the header; `None` when the line is no header.
pub(crate) fn column(header: &[u8]) -> Option<Column> {
    words(header).enumerate().find(|(_, (_, word))| *word == b"PID").map(|(i, (end, _))| Column { end, word: i })
}

/// The pid that a line is about.
pub(crate) fn pid(line: &[u8], column: Column) -> Option<i32> {
    let aligned = words(line).find(|(end, _)| *end == column.end).and_then(|(_, word)| number(word));
    aligned.or_else(|| words(line).nth(column.word).and_then(|(_, word)| number(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pids(text: &str) -> Vec<Option<i32>> {
        let mut lines = text.lines();
        let column = column(lines.next().unwrap().as_bytes()).unwrap();
        lines.map(|line| pid(line.as_bytes(), column)).collect()
    }

    #[test]
    fn wherever_the_column_is() {
        let xf = "    PID TTY      STAT   TIME COMMAND\n   6647 ?        S      0:00 sshd\n1343000 pts/2    R      0:08  \\_ a";
        assert_eq!(pids(xf), [Some(6647), Some(1343000)]);
        let aux =
            "USER         PID %CPU COMMAND\nroot           1  0.0 /sbin/init 77\nvery-long-username-x  123  0.1 x";
        assert_eq!(pids(aux), [Some(1), Some(123)]);
        let ppid = "   PPID     PID S\n      1      42 S";
        assert_eq!(pids(ppid), [Some(42)]);
        let dates = "                 STARTED     PID\nSat Nov 21 03:40:39 2026    4711";
        assert_eq!(pids(dates), [Some(4711)]);
        assert_eq!(pids("PID\n\nx"), [None, None]);
    }

    #[test]
    fn other_lines_are_no_header() {
        assert_eq!(column(b"  PPID TTY"), None);
        assert_eq!(column(b""), None);
        assert_eq!(column(b"\xff\xfe"), None);
    }
}
