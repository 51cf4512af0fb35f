//! bplib: the files that nodes keep at hand.

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bproc::{Client, HowLibraries as How};

use crate::cli::Bplib;

fn complain(words: impl std::fmt::Display) -> i32 {
    eprintln!("bplib: {words}");
    1
}

/// The names given; `-` stands for those on standard input. Relative ones are below the working directory.
fn names(options: &Bplib) -> io::Result<Vec<Vec<u8>>> {
    let mut names: Vec<OsString> = Vec::new();
    for path in &options.paths {
        if path.as_bytes() != b"-" {
            names.push(path.clone());
            continue;
        }
        for line in io::stdin().lock().split(b'\n') {
            let line = line?;
            if !line.trim_ascii().is_empty() {
                names.push(OsString::from_vec(line.trim_ascii().to_vec()));
            }
        }
    }
    let cwd = std::env::current_dir()?;
    Ok(names.into_iter().map(|name| cwd.join(name).into_os_string().into_vec()).collect())
}

fn list(client: &mut Client, json: bool) -> Result<(), String> {
    let paths = client.libraries().map_err(|error| error.to_string())?;
    let mut out = io::stdout().lock();
    let written = if json {
        let texts: Vec<String> = paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        serde_json::to_string_pretty(&texts).map_err(io::Error::other).and_then(|text| writeln!(out, "{text}"))
    } else {
        paths.iter().try_for_each(|path| out.write_all(path).and_then(|()| out.write_all(b"\n")))
    };
    written.map_err(|error| error.to_string())
}

/// Does what the options say; the exit status.
pub(crate) fn run(options: &Bplib) -> i32 {
    let mut client = match Client::connect() {
        Ok(client) => client,
        Err(error) => return complain(error),
    };
    if options.clear {
        return client.change_libraries(How::Clear, Vec::new()).map_or_else(complain, |_| 0);
    }
    if !options.add && !options.delete {
        return list(&mut client, options.json).map_or_else(complain, |()| 0);
    }
    let names = match names(options) {
        Ok(names) => names,
        Err(error) => return complain(error),
    };
    let how = if options.add { How::Add } else { How::Delete };
    let (mut status, mut remark) = (0, String::new());
    for name in names {
        // The others are done all the same.
        match client.change_libraries(how, name) {
            // Of all that was said the last is true now.
            Ok(words) => remark = words,
            Err(error) => status = complain(error),
        }
    }
    if !remark.is_empty() {
        complain(remark);
    }
    status
}
