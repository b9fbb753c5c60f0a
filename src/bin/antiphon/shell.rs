//! `antiphon completions` and `antiphon man`: what shells and `man` want to know
//! of the command line, made from the command line itself.
#![allow(clippy::print_stderr, reason = "printing is what this command is for")]

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::Shell;

use crate::exit;

/// What `antiphon completions` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsFlags {
    /// The shell that is to complete
    shell: Shell,
}

/// What `antiphon man` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ManFlags {
    /// The command whose page is wanted, as `serve` or `dlq list` [default:
    /// antiphon itself]
    command: Vec<String>,

    /// Write the pages of all commands into this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

/// Prints the shell's script on standard output.
pub(crate) fn completions(flags: &CompletionsFlags, mut command: clap::Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut command, "antiphon", &mut script);
    print(&script)
}

/// Prints a page on standard output, or writes all of them into a folder.
pub(crate) fn man(flags: &ManFlags, command: clap::Command) -> ExitCode {
    let mut command = command.disable_help_subcommand(true);
    // Names each page after the whole of its command: antiphon-dlq-list.
    command.build();
    if let Some(folder) = &flags.out {
        return match write_pages(&command, folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err((path, error)) => {
                eprintln!("antiphon: cannot write {}: {error}", path.display());
                exit::OS.into()
            }
        };
    }
    let mut wanted = &command;
    for name in &flags.command {
        let Some(found) = wanted.find_subcommand(name) else {
            let known: Vec<&str> = wanted.get_subcommands().map(clap::Command::get_name).collect();
            eprintln!("antiphon: {:?} is no command of {}", name, wanted.get_name());
            if !known.is_empty() {
                eprintln!("  hint: it has {}", known.join(", "));
            }
            return exit::USAGE.into();
        };
        wanted = found;
    }
    match page(wanted) {
        Ok(page) => print(&page),
        Err(error) => {
            eprintln!("antiphon: cannot make the page: {error}");
            exit::SOFTWARE.into()
        }
    }
}

fn write_pages(command: &clap::Command, folder: &Path) -> Result<(), (PathBuf, io::Error)> {
    fs::create_dir_all(folder).map_err(|error| (folder.to_owned(), error))?;
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        let path = folder.join(format!("{}.1", file_name(command)));
        page(command).and_then(|page| fs::write(&path, page)).map_err(|error| (path, error))?;
        left.extend(command.get_subcommands());
    }
    Ok(())
}

fn file_name(command: &clap::Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(file_name(command).to_uppercase())
        .manual("Antiphon")
        .render(&mut page)?;
    Ok(page)
}

fn print(text: &[u8]) -> ExitCode {
    // A reader that has gone, as in `man | head`, is no failure.
    let mut out = io::stdout();
    let _ = out.write_all(text).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Arguments;

    #[test]
    fn every_command_has_a_page_with_its_flags_and_examples() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Arguments::command().disable_help_subcommand(true);
        command.build();
        write_pages(&command, folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("antiphon.1").contains(r"antiphon\-serve(1)"));
        assert!(read("antiphon-serve.1").contains(r"\-\-bootstrap\-servers"));
        assert!(read("antiphon-dlq-list.1").contains("antiphon dlq list payment_request"));
        let commands = command.get_subcommands().count() + 1;
        let below = command.get_subcommands().map(|below| below.get_subcommands().count()).sum::<usize>();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), commands + below);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let inside = file.path().join("pages");
        let (path, _) = write_pages(&Arguments::command(), &inside).unwrap_err();
        assert_eq!(path, inside);
    }

    #[test]
    fn every_shell_knows_every_command() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "antiphon", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Arguments::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("bootstrap-servers"), "{shell}");
        }
    }
}
