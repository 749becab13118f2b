//! `weave completions` and `weave manual`: what shells and man(1) know about the command, made from
//! the definition of the command line itself.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Command, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use weave_cli_base::console::{tell, write_out};
use weave_cli_base::exit::{Exit, Failure, help};

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  weave completions bash > ~/.local/share/bash-completion/completions/weave
  weave completions zsh > ~/.zfunc/_weave             with ~/.zfunc in fpath
  weave completions fish > ~/.config/fish/completions/weave.fish
";

/// Print a shell's completion script.
#[derive(Debug, clap::Args)]
#[command(after_help = help(COMPLETIONS_EXAMPLES))]
pub(crate) struct Completions {
    /// Shell that it is for
    shell: Shell,
}

const MANUAL_EXAMPLES: &str = "\
Examples:
  weave manual ~/.local/share/man/man1 && man weave-generate
";

/// Write the manual pages into a folder: weave.1, weave-generate.1 and so on.
#[derive(Debug, clap::Args)]
#[command(after_help = help(MANUAL_EXAMPLES))]
pub(crate) struct Manual {
    /// Folder to write to, created if it doesn't exist; existing pages are replaced
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    folder: PathBuf,
}

pub(crate) fn completions(args: &Completions, mut weave: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut weave, "weave", &mut script);
    write_out(&script)
}

pub(crate) fn run(args: &Manual, weave: Command) -> Result<(), Failure> {
    let local = |error: io::Error| {
        Failure::new(Exit::Local, format_args!("can't write to {}: {error}", args.folder.display()))
            .next("name a folder that can be written to")
    };
    fs::create_dir_all(&args.folder).map_err(local)?;
    // There is no page for `weave help`, which says what the others do.
    let mut weave = weave.disable_help_subcommand(true);
    weave.build();
    let pages: Vec<_> = [&weave].into_iter().chain(weave.get_subcommands()).collect();
    let mut written = Vec::new();
    for command in pages {
        let man =
            Man::new(command.clone()).source(concat!("weave ", env!("CARGO_PKG_VERSION"))).manual("Weave");
        let path = args.folder.join(man.get_filename());
        let page = page(&man, command).map_err(local)?;
        fs::write(&path, page).map_err(local)?;
        written.push(path.display().to_string());
    }
    tell(format_args!("{}", written.join("\n")))
}

/// The page of one command. Its examples and exit statuses are lines to be kept as they are.
fn page(man: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut roff = Roff::new();
    let mut within = false;
    for line in after.lines() {
        match line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            Some(heading) => {
                if within {
                    roff.control("fi", []);
                }
                within = true;
                roff.control("SH", [heading.to_uppercase().as_str()]).control("nf", []);
            }
            None if line.is_empty() => {}
            None => {
                roff.text([roman(line)]);
            }
        }
    }
    if within {
        roff.control("fi", []);
    }
    roff.to_writer(&mut page)?;
    Ok(page)
}
