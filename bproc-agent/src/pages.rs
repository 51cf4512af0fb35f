//! `bproc-agent generate DIR`: man pages and shell completions, for packagers. Not shown in help. `vmadump` has the same, and no crate in
//! common with this one that knows of command lines.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Cli;

/// Writes `man/man8/*.8`, a page for each command, and `completions/*` under the directory.
///
/// # Errors
/// What keeps it from writing them.
pub(crate) fn generate(dir: &Path) -> io::Result<()> {
    let (man, shells) = (dir.join("man/man8"), dir.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&shells)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "bproc-agent", &shells)?;
    }
    command.build();
    for page in std::iter::once(&command).chain(command.get_subcommands()).filter(|page| !page.is_hide_set()) {
        Man::new(page.clone()).section("8").generate_to(&man)?;
    }
    Ok(())
}
