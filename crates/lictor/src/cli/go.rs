//! Go's flag syntax: `-x v`, `-x=v`, `--x v`, `--x=v`, brought into the one form that clap reads, `--x=v`.
//!
//! People come from `consul connect proxy`, whose flags are written with one dash. Everything else about flags, help
//! texts, values, "did you mean", stays with clap.

use std::ffi::OsString;

use clap::{ArgAction, Command};

/// Rewrites the arguments behind the name of the programme.
///
/// The first argument without a dash chooses the subcommand of `root`; flags in front of it are of `root` itself.
pub(crate) fn normalise(root: &Command, argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut argv = argv.into_iter();
    let mut out: Vec<OsString> = argv.next().into_iter().collect();
    let mut command = root;
    while let Some(argument) = argv.next() {
        let Some(text) = argument.to_str() else {
            out.push(argument);
            continue;
        };
        let Some(body) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|body| !body.is_empty())
        else {
            if let Some(sub) = command.find_subcommand(text) {
                command = sub;
            }
            let ends = text == "--";
            out.push(argument);
            if ends {
                out.extend(argv);
                break;
            }
            continue;
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            out.push("--help".into());
            continue;
        }
        let known = command.get_arguments().find(|known| known.get_long() == Some(name));
        let takes_next = known.is_some_and(|known| {
            matches!(known.get_action(), ArgAction::Set | ArgAction::Append) && !known.is_require_equals_set()
        });
        let mut flag = OsString::from(format!("--{name}"));
        match value {
            Some(value) => {
                flag.push("=");
                flag.push(value);
            }
            None if takes_next => {
                if let Some(next) = argv.next() {
                    flag.push("=");
                    flag.push(next);
                }
            }
            None => {}
        }
        out.push(flag);
    }
    out
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("\"{text}\" is neither true nor false")),
    }
}

/// A port as Go's `strconv.ParseInt` with base 0 reads it: decimal, `0x…`, `0o…`, `0b…`, or octal with a leading 0.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let (digits, radix) = match text.get(..2) {
        Some("0x" | "0X") => (&text[2..], 16),
        Some("0o" | "0O") => (&text[2..], 8),
        Some("0b" | "0B") => (&text[2..], 2),
        _ if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        _ => (text, 10),
    };
    u16::from_str_radix(digits, radix).ok().filter(|port| *port > 0 && !digits.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(line: &str) -> String {
        let argv = line.split_whitespace().map(OsString::from);
        let words: Vec<_> =
            normalise(&super::super::command(), argv).into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn one_dash_and_two_and_both_ways_to_give_a_value_are_the_same() {
        for line in [
            "lictor proxy -sidecar-for web",
            "lictor proxy --sidecar-for web",
            "lictor proxy -sidecar-for=web",
            "lictor proxy --sidecar-for=web",
        ] {
            assert_eq!(normalised(line), "lictor proxy --sidecar-for=web", "{line}");
        }
    }

    #[test]
    fn a_switch_does_not_take_the_next_word() {
        assert_eq!(
            normalised("lictor proxy -register -service web -log-json=false"),
            "lictor proxy --register --service=web --log-json=false"
        );
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        assert_eq!(normalised("lictor proxy -token -x -stale"), "lictor proxy --token=-x --stale");
    }

    #[test]
    fn help_is_help_in_every_spelling() {
        for line in ["lictor proxy -h", "lictor proxy -help", "lictor proxy --help"] {
            assert_eq!(normalised(line), "lictor proxy --help");
        }
    }

    #[test]
    fn ports_are_read_with_the_prefix_of_their_base() {
        assert_eq!(parse_port("8080"), Some(8080));
        assert_eq!(parse_port("0x1F90"), Some(8080));
        assert_eq!(parse_port("0"), None);
        assert_eq!(parse_port("65536"), None);
        assert_eq!(parse_port("+1"), None);
        assert_eq!(parse_port("hello"), None);
    }
}
