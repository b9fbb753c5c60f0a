//! What is wrong with the configuration, where, and what to do about it.
//!
//! Start-up collects every mistake that it can find before it refuses, so that
//! one run of `antiphon check` shows the whole list.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

/// Where a setting was written. All `None` for one that came from a flag or
/// from the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// File that holds the setting.
    pub file: Option<PathBuf>,
    /// Line in that file, from 1.
    pub line: Option<usize>,
    /// Column in that line, from 1.
    pub column: Option<usize>,
}

impl Origin {
    /// A file as a whole.
    pub fn of_file(file: impl Into<PathBuf>) -> Self {
        Self { file: Some(file.into()), line: None, column: None }
    }

    /// A mistake at this place.
    pub fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake {
            file: self.file.clone(),
            line: self.line,
            column: self.column,
            what: what.into(),
            hint: None,
        }
    }
}

/// One thing that is wrong. Shows as `file:line:column: what` and, where there
/// is one, a second line with a hint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mistake {
    /// File in which it is.
    pub file: Option<PathBuf>,
    /// Line in that file, from 1.
    pub line: Option<usize>,
    /// Column in that line, from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Mistake {
    /// A mistake that is in no file.
    pub fn new(what: impl Into<String>) -> Self {
        Origin::default().mistake(what)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what to do about it, where that is known.
    #[must_use]
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
                if let Some(column) = self.column {
                    write!(f, "{column}:")?;
                }
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.what)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Every mistake of one reading, in the order of the files' lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Notes one more.
    pub fn push(&mut self, mistake: Mistake) {
        self.0.push(mistake);
    }

    /// Notes all those of another reading.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// The value, if nothing is wrong.
    ///
    /// # Errors
    /// The mistakes, sorted by place, if there are any.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self.sorted()) }
    }

    /// The same, each once, by file, line and column; those in no file come
    /// first.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        let mut seen = HashSet::new();
        self.0.retain(|mistake| seen.insert(mistake.clone()));
        self.0.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        self
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// A hint with the candidate nearest to what was written, if one is near.
pub fn did_you_mean<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let letters = written.chars().count();
    let far = ((letters / 3).max(1) + 1).min(letters);
    let tail = format!(".{written}");
    candidates
        .into_iter()
        .map(|candidate| {
            let alike = candidate.ends_with(&tail) || candidate.eq_ignore_ascii_case(written);
            (if alike { 0 } else { distance(written, candidate, far) }, candidate)
        })
        .filter(|(steps, _)| *steps < far)
        .min()
        .map(|(_, candidate)| format!("did you mean {candidate:?}?"))
}

/// Letters to add, drop, change or swap with their neighbour to make one word
/// of the other; `far` when it is that many or more.
fn distance(a: &str, b: &str, far: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= far {
        return far;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_near_or_absent() {
        let names = ["order_id", "amount_minor", "currency"];
        let hint = |word| did_you_mean(word, names);
        assert_eq!(hint("oder_id").as_deref(), Some("did you mean \"order_id\"?"));
        assert_eq!(hint("ORDER_ID").as_deref(), Some("did you mean \"order_id\"?"));
        assert_eq!(hint("currnecy").as_deref(), Some("did you mean \"currency\"?"));
        assert_eq!(hint("shop"), None);
        assert_eq!(hint(""), None);
        let service = did_you_mean("PaymentService", ["payments.v1.PaymentService"]);
        assert_eq!(service.as_deref(), Some("did you mean \"payments.v1.PaymentService\"?"));
    }

    #[test]
    fn mistakes_are_sorted_once_each_and_rendered() {
        let at = |line| Origin { file: Some("a.toml".into()), line: Some(line), column: Some(2) };
        let mut mistakes = Mistakes::default();
        mistakes.push(at(9).mistake("late"));
        mistakes.push(at(3).mistake("early").hint("wait"));
        mistakes.push(at(9).mistake("late"));
        mistakes.push(Mistake::new("--listen: odd"));
        let shown = mistakes.or(()).map_err(|m| m.to_string());
        assert_eq!(shown, Err("--listen: odd\na.toml:3:2: early\n  hint: wait\na.toml:9:2: late".to_owned()));
    }
}
