//! The options of every tool, as users of BProc know them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};

/// Run a program on nodes
///
/// The program is looked up on this machine's PATH, with this environment and directory, and runs on every node
/// named. Its input is copied to every node, its output comes back. Signals and job control act on all of them.
#[derive(Parser, Debug, Default)]
#[command(
    name = "bpsh",
    version,
    disable_version_flag = true,
    override_usage = "bpsh [options] NODES COMMAND [ARGS]\n       bpsh [options] -a|-A COMMAND [ARGS]",
    after_help = "NODES is a comma list of N, N-M, N- (to the last), master, all, a state (up), notSTATE or !STATE.\n\n\
        Exit status: the largest of the remote ones; 255 when one was killed by a signal or lost input or output with its connection; 127 when the program is not \
        found, 126 when it cannot be run, 1 when it could not be started for another reason, 2 for wrong usage."
)]
pub(crate) struct Bpsh {
    /// Run on all nodes that are up
    #[arg(short = 'a', conflicts_with_all = ["not_down", "on_master"])]
    pub(crate) up: bool,
    /// Run on all nodes that are not down
    #[arg(short = 'A', conflicts_with = "on_master")]
    pub(crate) not_down: bool,
    /// Run on the master itself
    #[arg(short = '1')]
    pub(crate) on_master: bool,
    /// Read nothing: standard input is /dev/null
    #[arg(short = 'n')]
    pub(crate) no_stdin: bool,
    /// Forward no input and output at all
    #[arg(short = 'N')]
    pub(crate) no_io: bool,
    /// Write whole lines only
    #[arg(short = 'L')]
    pub(crate) lines: bool,
    /// Begin each line with the number of its node (implies -L)
    #[arg(short = 'p')]
    pub(crate) prefix: bool,
    /// Write the output of one node after the other, in the order of NODES
    #[arg(short = 's')]
    pub(crate) sorted: bool,
    /// Write a divider before the output of each node (implies -s)
    #[arg(short = 'd')]
    pub(crate) divider: bool,
    /// Read the output of a node in pieces of N bytes
    #[arg(short = 'b', value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub(crate) buffer: u32,
    /// Read standard input from FILE on the node
    #[arg(short = 'I', long, value_name = "FILE")]
    pub(crate) stdin: Option<PathBuf>,
    /// Write standard output to FILE on the node
    #[arg(short = 'O', long, value_name = "FILE")]
    pub(crate) stdout: Option<PathBuf>,
    /// Write standard error to FILE on the node
    #[arg(short = 'E', long, value_name = "FILE")]
    pub(crate) stderr: Option<PathBuf>,
    /// Tell on standard error how many seconds it took
    #[arg(short = 't', long)]
    pub(crate) time: bool,
    /// Ignored, as in rsh
    #[arg(short = 'l', value_name = "USER")]
    pub(crate) user: Option<OsString>,
    /// Put BPROC_LABEL=NAME into the environment of the processes
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,
    /// Run on a terminal of the node, for interactive programs
    #[arg(long, conflicts_with_all = ["lines", "prefix", "sorted", "divider", "no_io", "stdin", "stdout", "stderr"])]
    pub(crate) pty: bool,
    /// Print version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// Nodes, then the program and its arguments
    #[arg(value_name = "NODES COMMAND", trailing_var_arg = true)]
    pub(crate) rest: Vec<OsString>,
    /// What `rest` began with, where no option says which nodes.
    #[arg(skip)]
    pub(crate) nodes: Option<OsString>,
}

/// Reads bpsh's arguments. Options stop at the command; between nodes and command they are options still.
pub(crate) fn parse_bpsh(mut args: Vec<OsString>) -> Result<Bpsh, clap::Error> {
    let mut options = Bpsh::try_parse_from(&args)?;
    let chosen = options.up || options.not_down || options.on_master;
    if !chosen && !options.rest.is_empty() {
        let nodes = options.rest.remove(0);
        let looks_like_option = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-") && arg.len() > 1;
        if options.rest.first().is_some_and(looks_like_option) {
            // Everything from the nodes on is positional, so they stand that far from the end.
            let at = args.len() - options.rest.len() - 1;
            args.remove(at);
            if args.get(at - 1).is_some_and(|arg| arg == "--") {
                args.remove(at - 1);
            }
            options = Bpsh::from_arg_matches(&Bpsh::command().try_get_matches_from(&args)?)?;
        }
        options.nodes = Some(nodes);
    }
    if options.rest.is_empty() {
        let kind = clap::error::ErrorKind::MissingRequiredArgument;
        return Err(Bpsh::command().error(kind, "tell the nodes and the command to run on them"));
    }
    Ok(options)
}

/// Show nodes and the processes on them
#[derive(Parser, Debug, Default)]
#[command(name = "bpstat", version, disable_version_flag = true)]
pub(crate) struct Bpstat {
    /// Print one line for nodes that are alike (default)
    #[arg(short = 'c', long, group = "what")]
    pub(crate) compact: bool,
    /// Print one line a node, with its address
    #[arg(short = 'l', long, group = "what")]
    pub(crate) long: bool,
    /// Print the addresses of the nodes
    #[arg(short = 'a', long, group = "what")]
    pub(crate) address: bool,
    /// Print the states of the nodes
    #[arg(short = 's', long, group = "what")]
    pub(crate) status: bool,
    /// Print how many nodes are selected
    #[arg(short = 'n', long, group = "what")]
    pub(crate) number: bool,
    /// Print how many nodes there are in all
    #[arg(short = 't', long, group = "what")]
    pub(crate) total: bool,
    /// Print the number of the node that has this address or host name
    #[arg(short = 'A', long = "sockaddr", value_name = "HOST", group = "what")]
    pub(crate) host: Option<String>,
    /// Print pid and node of every process on a node
    #[arg(short = 'p', long = "procs", group = "what")]
    pub(crate) processes: bool,
    /// Read what ps prints and put the node before each line
    #[arg(short = 'P', long = "ps", group = "what")]
    pub(crate) filter: bool,
    /// Sort the other way round
    #[arg(short = 'R', long)]
    pub(crate) reverse: bool,
    /// Sort by number
    #[arg(short = 'N', long, group = "sort")]
    pub(crate) sort_number: bool,
    /// Sort by status, then number
    #[arg(short = 'S', long, group = "sort")]
    pub(crate) sort_status: bool,
    /// Keep the order in which the nodes are named
    #[arg(short = 'O', long, group = "sort")]
    pub(crate) keep_order: bool,
    /// Print again whenever something changes
    #[arg(short = 'U', long)]
    pub(crate) update: bool,
    /// Ignore the terminal's interrupt and stop keys (with -U)
    #[arg(short = 'L', long)]
    pub(crate) lock: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// Node sets (default: all)
    #[arg(value_name = "NODES", allow_negative_numbers = true)]
    pub(crate) nodes: Vec<String>,
}

/// Have running processes go on on another node
///
/// The processes need not know: each is stopped for some milliseconds and goes on with the same pid, parent, children,
/// memory, threads, timers and signals. Standard streams stay connected; other open files go along if the node has
/// them too. A process that cannot move is told why and runs on where it is. 'bproc move' is the same.
#[derive(Parser, Debug, Default)]
#[command(name = "bpmove", version, disable_version_flag = true)]
pub(crate) struct Bpmove {
    /// Close open files that cannot go along, instead of refusing
    #[arg(short = 'd', long)]
    pub(crate) drop_files: bool,
    /// Tell how long each process stood still, and the size of its image
    #[arg(short = 'V', long)]
    pub(crate) verbose: bool,
    /// Print version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// The processes
    #[arg(value_name = "PID", required = true, value_parser = clap::value_parser!(i32).range(2..))]
    pub(crate) pids: Vec<i32>,
    /// Where to: the number of a node, or "master"
    #[arg(value_name = "NODE", required = true, allow_negative_numbers = true)]
    pub(crate) node: String,
}

/// Change the state, owner and permissions of nodes
///
/// Actions happen in the order given, on each node.
#[derive(Parser, Debug, Default)]
#[command(name = "bpctl", version, disable_version_flag = true)]
pub(crate) struct Bpctl {
    /// Act on the master
    #[arg(short = 'M', long)]
    pub(crate) master: bool,
    /// Act on these nodes
    #[arg(
        short = 'S',
        long = "slave",
        value_name = "NODES",
        required_unless_present = "master",
        conflicts_with = "master",
        allow_hyphen_values = true
    )]
    pub(crate) slaves: Option<String>,
    /// Set the state
    #[arg(short = 's', long, value_name = "STATE")]
    pub(crate) state: Vec<String>,
    /// Set the mode, octal
    #[arg(short = 'm', long, value_name = "MODE")]
    pub(crate) mode: Vec<String>,
    /// Set the owner, by name or number
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Vec<String>,
    /// Set the group, by name or number
    #[arg(short = 'g', long, value_name = "GROUP")]
    pub(crate) group: Vec<String>,
    /// Reboot
    #[arg(short = 'R', long, action = ArgAction::Count)]
    pub(crate) reboot: u8,
    /// Halt
    #[arg(short = 'H', long, action = ArgAction::Count)]
    pub(crate) halt: u8,
    /// Power off
    #[arg(short = 'P', long, action = ArgAction::Count)]
    pub(crate) pwroff: u8,
    /// Ignored
    #[arg(short = 'f')]
    pub(crate) fast: bool,
    /// Print version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// Change or show the files that nodes keep at hand for programs that travel
///
/// What a program is linked with travels by itself; this is for what it opens later: plug-ins, modules of an
/// interpreter, data. Programs find these files at their paths on every node that does not have them.
#[derive(Parser, Debug, Default)]
#[command(name = "bplib", version, disable_version_flag = true)]
pub(crate) struct Bplib {
    /// Empty the list
    #[arg(short = 'c', long, group = "what")]
    pub(crate) clear: bool,
    /// Add files; a directory means all files below it
    #[arg(short = 'a', long, group = "what", requires = "paths")]
    pub(crate) add: bool,
    /// Take files out of the list
    #[arg(short = 'd', long = "delete", group = "what", requires = "paths")]
    pub(crate) delete: bool,
    /// Print the list (default)
    #[arg(short = 'l', long, group = "what", conflicts_with = "paths")]
    pub(crate) list: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// Files; '-' reads names from standard input, one a line
    #[arg(value_name = "FILE")]
    pub(crate) paths: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpsh(line: &str) -> Result<Bpsh, clap::Error> {
        parse_bpsh(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn definitions_are_sound() {
        Bpsh::command().debug_assert();
        Bpstat::command().debug_assert();
        Bpctl::command().debug_assert();
        Bplib::command().debug_assert();
    }

    #[test]
    fn options_stop_at_the_command() {
        let got = bpsh("bpsh -Lp 0-3 ls -l --help -a").unwrap();
        assert!(got.lines && got.prefix && !got.up);
        assert_eq!(got.nodes.unwrap(), "0-3");
        assert_eq!(got.rest, ["ls", "-l", "--help", "-a"]);
        let got = bpsh("bpsh -a ls -l").unwrap();
        assert!(got.up && got.nodes.is_none());
        assert_eq!(got.rest, ["ls", "-l"]);
    }

    #[test]
    fn options_between_nodes_and_command() {
        for line in
            ["bpsh 3 -n -l me -b8192 cat -n", "bpsh -n 3 -l me -b 8192 cat -n", "bpsh -n -- 3 -b 8192 -- cat -n"]
        {
            let got = bpsh(line).unwrap();
            assert!(got.no_stdin, "{line}");
            assert_eq!(got.buffer, 8192);
            assert_eq!(got.nodes.unwrap(), "3");
            assert_eq!(got.rest, ["cat", "-n"]);
        }
    }

    #[test]
    fn the_master_by_option_or_name() {
        assert!(bpsh("bpsh -1 date").unwrap().on_master);
        assert_eq!(bpsh("bpsh master date").unwrap().nodes.unwrap(), "master");
    }

    #[test]
    fn mistakes() {
        for line in ["bpsh", "bpsh 3", "bpsh -a", "bpsh -b 0 3 ls", "bpsh -a -A ls", "bpsh -Z 3 ls"] {
            assert!(bpsh(line).is_err(), "{line}");
        }
    }
}
