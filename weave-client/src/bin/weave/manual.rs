//! `weave completions` and `weave manual`: what shells and man(1) know about the command, made from
//! the definition of the command line itself.

use std::fs;
use std::io;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::args::{Args, Completions, Manual};
use crate::exit::{Exit, Failure, tell, write_out};

pub(crate) fn completions(args: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "weave", &mut script);
    write_out(&script)
}

pub(crate) fn run(args: &Manual) -> Result<(), Failure> {
    let local = |error: io::Error| {
        Failure::new(Exit::Local, format_args!("can't write to {}: {error}", args.folder.display()))
            .next("name a folder that can be written to")
    };
    fs::create_dir_all(&args.folder).map_err(local)?;
    // There is no page for `weave help`, which says what the others do.
    let mut weave = Args::command().disable_help_subcommand(true);
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
