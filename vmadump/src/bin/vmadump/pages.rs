//! `vmadump generate DIR`: man pages and shell completions, for packagers. Not shown in help.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Cli;

/// Writes `man/man1/*.1`, a page for each command, and `completions/*` under the directory.
///
/// # Errors
/// What keeps it from writing them.
pub(crate) fn generate(dir: &Path) -> io::Result<()> {
    let (man, shells) = (dir.join("man/man1"), dir.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&shells)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "vmadump", &shells)?;
    }
    command.build();
    for page in std::iter::once(&command).chain(command.get_subcommands()).filter(|page| !page.is_hide_set()) {
        Man::new(page.clone()).section("1").generate_to(&man)?;
    }
    Ok(())
}
