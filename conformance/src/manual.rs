//! weave-conform(1), made from the definition of the command line.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;

/// Writes the page, in the language of man(7): one for the command and all that it can do.
pub(crate) fn write(mut command: Command, out: &mut impl Write) -> io::Result<()> {
    command = command.disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone()).source(concat!("weave ", env!("CARGO_PKG_VERSION"))).manual("Weave");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let name = verb.get_name().to_uppercase();
        let mut section = Vec::new();
        let man = Man::new(verb.clone());
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        let section = String::from_utf8_lossy(&section)
            .replace(".SH DESCRIPTION\n", &format!(".SH \"{name}\"\n"))
            .replace(".SH OPTIONS\n", ".SS Options\n");
        out.write_all(section.as_bytes())?;
        lines(verb, out)?;
    }
    lines(&command, out)
}

/// What stands after the options: lines that are kept as they are.
fn lines(command: &Command, out: &mut impl Write) -> io::Result<()> {
    let Some(text) = command.get_after_help().map(ToString::to_string) else { return Ok(()) };
    let (heading, lines) = text.split_once(':').unwrap_or(("Notes", &text));
    writeln!(out, ".SS {heading}\n.nf")?;
    for line in lines.trim_start_matches('\n').lines() {
        // A blank at its beginning keeps a line from being a command.
        writeln!(out, " {}", line.trim().replace('\\', "\\e").replace('-', "\\-"))?;
    }
    writeln!(out, ".fi")
}
