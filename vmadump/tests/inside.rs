//! A process that dumps itself and one that becomes the image, by the same program and by the tool; damaged images
//! leave the caller as it was.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use common::{compile, dir, in_namespace};

const LIMIT: Duration = Duration::from_secs(30);

fn program() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/selfdump")
}

fn run(args: &[&str]) -> Output {
    Command::new("timeout").arg("10").arg(program()).args(args).output().unwrap()
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn dump(name: &str, flags: &str) -> String {
    let image = dir().join(name).to_str().unwrap().to_owned();
    let out = run(&["dump", &image, flags]);
    assert_eq!((text(&out).as_str(), out.status.code()), ("0\n1\n2\n3\n4\n5\ndumped true\n", Some(9)));
    image
}

const REST: &str = "undumped\n6\n7\n8\n9\ndone\n";

#[test]
fn dumps_and_becomes_itself() {
    in_namespace("dumps_and_becomes_itself", LIMIT, || {
        for flags in ["0", "6", "7"] {
            let image = dump(&format!("self-{flags}"), flags);
            for _ in 0..5 {
                let out = run(&["undump", &image]);
                assert_eq!((text(&out).as_str(), out.status.code()), (REST, Some(7)));
            }
            let out = Command::new(env!("CARGO_BIN_EXE_vmadump")).args(["undump", &image]).output().unwrap();
            assert_eq!((text(&out).as_str(), out.status.code()), (REST, Some(7)));
        }
    });
}

#[test]
fn needs_no_privilege() {
    in_namespace("needs_no_privilege", LIMIT, || {
        let image = format!("/tmp/vmadump-test-{}", std::process::id());
        let as_nobody = |args: &[&str]| {
            let copy = "/tmp/vmadump-test-selfdump";
            std::fs::copy(program(), copy).unwrap();
            let out = Command::new("timeout")
                .args(["10", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", copy])
                .args(args)
                .output()
                .unwrap();
            std::fs::remove_file(copy).unwrap();
            out
        };
        let out = as_nobody(&["dump", &image, "6"]);
        assert_eq!(out.status.code(), Some(9), "{out:?}");
        let out = as_nobody(&["undump", &image]);
        assert_eq!((text(&out).as_str(), out.status.code()), (REST, Some(7)), "{out:?}");
        std::fs::remove_file(&image).unwrap();
    });
}

#[test]
fn a_bad_image_leaves_the_caller() {
    in_namespace("a_bad_image_leaves_the_caller", LIMIT, || {
        let image = dump("bad", "7");
        let whole = std::fs::read(&image).unwrap();
        let mut cases: Vec<Vec<u8>> = vec![b"hello".to_vec(), Vec::new()];
        for part in 1..12 {
            let at = whole.len() * part / 12;
            cases.push(whole[..at].to_vec());
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            cases.push(flipped);
        }
        for case in cases {
            std::fs::write(&image, &case).unwrap();
            let out = run(&["undump", &image]);
            assert!(text(&out).starts_with("still here: "), "{}", text(&out));
            assert_eq!(out.status.code(), Some(3));
        }
    });
}

#[test]
fn an_image_from_outside_is_undumped_from_inside() {
    in_namespace("an_image_from_outside_is_undumped_from_inside", LIMIT, || {
        let mut traveller = common::Traveller::start(Command::new(compile("count", &[])).arg("12"));
        assert_eq!(traveller.line(), "0");
        assert_eq!(traveller.line(), "1");
        traveller.dump_and_end();
        let out = run(&["undump", traveller.image.to_str().unwrap()]);
        assert!(text(&out).ends_with("10\n11\n"), "{out:?}");
        assert_eq!(out.status.code(), Some(7));
    });
}
