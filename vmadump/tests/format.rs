//! The parser against damaged and hostile bytes: an error each time, never a panic, never much memory.

mod common;

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use common::{Traveller, compile, in_namespace};
use proptest::prelude::*;
use vmadump::crc::crc32c;
use vmadump::facts::Facts;
use vmadump::image::{FormatError, Reader, Writer};
use vmadump::plan::{Wishes, plan};

/// A real image of a small program.
fn image() -> Vec<u8> {
    let mut program = Traveller::start(Command::new(compile("count", &["-static"])).arg("3"));
    program.line();
    program.dump_and_end();
    std::fs::read(&program.image).unwrap()
}

fn read_all(bytes: &[u8]) -> Result<u64, FormatError> {
    let mut reader = Reader::new(bytes)?;
    // A plan of anything that parses must not panic either.
    let _ = plan(reader.image(), &Facts::here(), &Wishes::default());
    let (mut data, mut pages) = (Vec::new(), 0);
    while let Some(block) = reader.block()? {
        reader.data(&block, &mut data)?;
        pages += block.len / 4096;
    }
    Ok(pages)
}

/// Sections of an image: offset and bytes of payload.
fn sections(image: &[u8]) -> Vec<(usize, usize)> {
    let mut at = 32;
    let mut all = Vec::new();
    while at + 32 <= image.len() {
        let len = u64::from_le_bytes(image[at + 8..at + 16].try_into().unwrap()) as usize;
        all.push((at, len));
        at += 32 + len;
    }
    all
}

/// Makes the checksums of a section fit again.
fn seal(image: &mut [u8], (at, len): (usize, usize)) {
    let sum = crc32c(&image[at + 32..at + 32 + len]);
    image[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
    let head = crc32c(&image[at..at + 28]);
    image[at + 28..at + 32].copy_from_slice(&head.to_le_bytes());
}

#[test]
fn damage_is_found() {
    in_namespace("damage_is_found", Duration::from_secs(60), || {
        let whole = image();
        assert!(read_all(&whole).unwrap() > 0);
        for cut in (0..whole.len()).step_by(whole.len() / 300) {
            assert!(read_all(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in (0..whole.len()).step_by(whole.len() / 600) {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(read_all(&bad).is_err(), "flipped at {at}");
        }
    });
}

#[test]
fn hostile_sections_do_no_harm() {
    in_namespace("hostile_sections_do_no_harm", Duration::from_secs(100), || {
        let whole = image();
        let all = sections(&whole);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 4000,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let strategy = (0..12usize, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8));
        runner
            .run(&strategy, |(section, changes)| {
                let mut bad = whole.clone();
                let (at, len) = all[section];
                for (index, value) in &changes {
                    bad[at + 32 + index.index(len)] = *value;
                }
                seal(&mut bad, all[section]);
                let _ = read_all(&bad);
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn unknown_sections() {
    in_namespace("unknown_sections", Duration::from_secs(30), || {
        let whole = image();
        let (at, _) = sections(&whole)[1];
        let with = |critical: u32| {
            let mut more = whole[..at].to_vec();
            let mut head: Vec<u8> = Vec::new();
            for word in [999u32, critical, 4, 0] {
                head.extend(word.to_le_bytes());
            }
            head.extend([0; 12]);
            head[24..28].copy_from_slice(&1u32.to_le_bytes());
            head.extend([0; 4]);
            more.extend(head);
            more.extend(b"more");
            seal(&mut more, (at, 4));
            more.extend(&whole[at..]);
            more
        };
        assert!(matches!(read_all(&with(1)), Err(FormatError::UnknownSection(999))));
        // Skipped; what follows has the wrong numbers, as in any image with something put in.
        assert!(matches!(read_all(&with(0)), Err(FormatError::Malformed(_))));
    });
}

#[test]
fn foreign_headers_are_named() {
    in_namespace("foreign_headers_are_named", Duration::from_secs(30), || {
        let whole = image();
        let change = |at: usize, value: u8| {
            let mut other = whole.clone();
            other[at] = value;
            let sum = crc32c(&other[..28]);
            other[28..32].copy_from_slice(&sum.to_le_bytes());
            read_all(&other)
        };
        assert!(matches!(change(0, b'X'), Err(FormatError::NotAnImage)));
        assert!(matches!(change(8, 9), Err(FormatError::Version(9, _))));
        assert!(matches!(change(12, 2), Err(FormatError::Architecture(2))));
        assert!(matches!(change(17, 64), Err(FormatError::PageSize(16384))));
    });
}

#[test]
fn what_was_read_is_written_the_same() {
    in_namespace("what_was_read_is_written_the_same", Duration::from_secs(30), || {
        let whole = image();
        let mut reader = Reader::new(&whole[..]).unwrap();
        let mut again = Vec::new();
        let front = reader.image().clone();
        let mut writer = Writer::new(&mut again, &front).unwrap();
        let mut data = Vec::new();
        while let Some(block) = reader.block().unwrap() {
            reader.data(&block, &mut data).unwrap();
            writer.block(&block.runs, &data).unwrap();
        }
        writer.finish().unwrap();
        std::io::stdout().flush().unwrap();
        assert!(again == whole);
    });
}
