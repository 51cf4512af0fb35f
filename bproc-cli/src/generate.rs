//! `bproc generate DIR`: man pages and shell completions, for packagers. Not shown in help.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli;

fn commands() -> [Command; 5] {
    [cli::Bpsh::command(), cli::Bpstat::command(), cli::Bpctl::command(), cli::Bplib::command(), cli::Bpmove::command()]
}

fn generate(dir: &Path) -> io::Result<()> {
    let (man, shells) = (dir.join("man/man1"), dir.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&shells)?;
    for command in commands() {
        let name = command.get_name().to_owned();
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone()).render(&mut page)?;
        fs::write(man.join(format!("{name}.1")), page)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command.clone(), &name, &shells)?;
        }
    }
    Ok(())
}

/// Writes `man/man1/*.1` and `completions/*` under the directory.
pub(crate) fn run(dir: Option<&OsString>) -> i32 {
    let Some(dir) = dir else {
        eprintln!("Usage: bproc generate DIR");
        return 2;
    };
    match generate(Path::new(dir)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("bproc: cannot write man pages and completions below {}: {error}", dir.to_string_lossy());
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_a_page_and_completions() {
        let dir = std::env::temp_dir().join(format!("bproc-generate-{}", std::process::id()));
        generate(&dir).unwrap();
        for (tool, _) in crate::TOOLS {
            let page = fs::read_to_string(dir.join(format!("man/man1/{tool}.1"))).unwrap();
            assert!(page.contains("SYNOPSIS"));
        }
        assert_eq!(fs::read_dir(dir.join("completions")).unwrap().count(), 15);
        fs::remove_dir_all(&dir).unwrap();
    }
}
