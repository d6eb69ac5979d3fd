//! Grammars in GBNF, llama.cpp's notation, as Lark for llguidance.
//!
//! Owns the notation (llama.cpp's `grammars/README.md`) and its bounds.
//! Invariants: a text that is not understood is an error that names its line;
//! the Lark grammar takes exactly the texts that the GBNF grammar takes
//! (`lexemes` has how). Out of scope: which tokens a grammar allows.

mod lark;
mod lexemes;

use std::collections::HashMap;

/// Most rules: compiling follows them by recursion.
const MOST_RULES: usize = 1900;
/// Most parentheses within one another.
const DEEPEST: usize = 64;
/// Most repetitions that are counted, as in llama.cpp.
const MOST_REPEATS: u32 = 2000;
const LAST_CHAR: u32 = 0x10_ffff;

/// Characters by their code points: sorted, apart from one another, ends included.
type Ranges = Vec<(u32, u32)>;

/// What a rule is made of.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// One character of a class, by the class's number. The place is the number of
    /// this mention.
    Class { class: usize, place: usize },
    /// Another rule, by its number.
    Rule(usize),
    /// One after another; of nothing: the empty text.
    Sequence(Vec<Node>),
    /// One of these.
    Either(Vec<Node>),
    /// So many times; without an end where `most` is `None`.
    Repeat {
        id: usize,
        node: Box<Node>,
        least: u32,
        most: Option<u32>,
    },
    /// A repetition that is read as one lexeme, by its number.
    Lexeme(usize),
}

/// A grammar that was understood.
#[derive(Clone, Debug, Default)]
struct Gbnf {
    classes: Vec<Ranges>,
    rules: Vec<Node>,
    root: usize,
    places: usize,
    repeats: usize,
}

/// Whether a grammar is in GBNF, and not in Lark: its first rule says.
pub fn is(text: &str) -> bool {
    let first = text
        .lines()
        .map(str::trim_start)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    let rest = first.map(|line| line.trim_start_matches(is_name));
    rest.is_some_and(|rest| rest.trim_start().starts_with("::="))
}

/// The same grammar in Lark.
///
/// # Errors
/// What is not understood, with its line.
pub fn to_lark(text: &str) -> Result<String, String> {
    Ok(lark::write(&lexemes::find(Reader::new(text).read()?)))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Ranges in order, joined where they touch; without surrogates, which no text has.
fn ordered(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut out: Ranges = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// All other characters.
fn others(ranges: &Ranges) -> Ranges {
    let mut out = Ranges::new();
    let mut next = 0;
    for (first, last) in ranges {
        if *first > next {
            out.push((next, first - 1));
        }
        next = last + 1;
    }
    if next <= LAST_CHAR {
        out.push((next, LAST_CHAR));
    }
    out
}

struct Reader<'a> {
    rest: std::str::Chars<'a>,
    line: usize,
    grammar: Gbnf,
    classes: HashMap<Ranges, usize>,
    names: HashMap<&'a str, usize>,
    /// By number: the name, the line of the first mention, and whether it is defined.
    rules: Vec<(&'a str, usize, bool)>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars(),
            line: 1,
            grammar: Gbnf::default(),
            classes: HashMap::new(),
            names: HashMap::new(),
            rules: Vec::new(),
        }
    }

    fn read(mut self) -> Result<Gbnf, String> {
        self.space(true);
        while self.peek().is_some() {
            self.rule()?;
            self.space(true);
        }
        if let Some((name, line, _)) = self.rules.iter().find(|(_, _, defined)| !defined) {
            return Err(format!("line {line}: there is no rule `{name}`"));
        }
        let Some(root) = self.names.get("root") else {
            return Err("it has no rule `root`".into());
        };
        self.grammar.root = *root;
        Ok(self.grammar)
    }

    fn rule(&mut self) -> Result<(), String> {
        let (line, name) = (self.line, self.name());
        if name.is_empty() {
            return self.wrong("a rule begins with its name");
        }
        self.space(false);
        if !self.take_text("::=") {
            return self.wrong(format!("`::=` must follow the name `{name}`"));
        }
        self.space(true);
        let number = self.number_of(name)?;
        if self.rules[number].2 {
            return Err(format!("line {line}: there are two rules `{name}`"));
        }
        let node = self.either(0)?;
        self.grammar.rules[number] = node;
        self.rules[number].2 = true;
        match self.peek() {
            None | Some('\n' | '\r') => Ok(()),
            Some(c) => self.wrong(format!("`{}` is not understood here", c.escape_debug())),
        }
    }

    fn number_of(&mut self, name: &'a str) -> Result<usize, String> {
        if let Some(number) = self.names.get(name) {
            return Ok(*number);
        }
        if self.rules.len() == MOST_RULES {
            return self.wrong(format!("there are more than {MOST_RULES} rules"));
        }
        let number = self.rules.len();
        self.names.insert(name, number);
        self.rules.push((name, self.line, false));
        self.grammar.rules.push(Node::Sequence(Vec::new()));
        Ok(number)
    }

    fn either(&mut self, depth: usize) -> Result<Node, String> {
        let mut all = vec![self.sequence(depth)?];
        while self.take('|') {
            self.space(true);
            all.push(self.sequence(depth)?);
        }
        Ok(match all.len() {
            1 => all.swap_remove(0),
            _ => Node::Either(all),
        })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, String> {
        let mut all = Vec::new();
        loop {
            let node = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.next();
                    self.mention(vec![(0, LAST_CHAR)])
                }
                Some('(') => {
                    if depth == DEEPEST {
                        return self.wrong(format!("more than {DEEPEST} parentheses are open"));
                    }
                    self.next();
                    self.space(true);
                    let inner = self.either(depth + 1)?;
                    if !self.take(')') {
                        return self.wrong("`)` is missing");
                    }
                    inner
                }
                Some('<' | '!') => {
                    return self.wrong("tokens by number or name are not taken, only characters");
                }
                Some(c) if is_name(c) => {
                    let name = self.name();
                    Node::Rule(self.number_of(name)?)
                }
                _ => return Ok(Node::Sequence(all)),
            };
            self.space(depth > 0);
            all.push(self.repeated(node, depth)?);
        }
    }

    /// What is repeated, as often as is said behind it.
    fn repeated(&mut self, mut node: Node, depth: usize) -> Result<Node, String> {
        loop {
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.counts()?,
                _ => return Ok(node),
            };
            self.next();
            self.space(depth > 0);
            if most.is_some_and(|most| most < least) {
                return self.wrong("a repetition ends before it begins");
            }
            let id = self.grammar.repeats;
            self.grammar.repeats += 1;
            let inner = Box::new(node);
            node = Node::Repeat {
                id,
                node: inner,
                least,
                most,
            };
        }
    }

    /// `{m}`, `{m,}`, `{m,n}` or `{,n}`, up to the brace.
    fn counts(&mut self) -> Result<(u32, Option<u32>), String> {
        self.next();
        self.space(false);
        let least = self.count()?;
        self.space(false);
        let exact = !self.take(',');
        self.space(false);
        let most = if exact { least } else { self.count()? };
        self.space(false);
        if self.peek() != Some('}') || (exact && least.is_none()) {
            return self.wrong("a repetition must be {m}, {m,}, {m,n} or {,n}");
        }
        Ok((least.unwrap_or(0), most))
    }

    fn count(&mut self) -> Result<Option<u32>, String> {
        let mut number = None;
        while let Some(digit) = self.peek().and_then(|c| c.to_digit(10)) {
            self.next();
            let more = number.unwrap_or(0) * 10 + digit;
            if more > MOST_REPEATS {
                return self.wrong(format!("more than {MOST_REPEATS} repetitions"));
            }
            number = Some(more);
        }
        Ok(number)
    }

    fn literal(&mut self) -> Result<Node, String> {
        self.next();
        let mut all = Vec::new();
        loop {
            match self.peek() {
                Some('"') => break,
                _ => {
                    let c = self.character()?;
                    all.push(self.mention(vec![(c, c)]));
                }
            }
        }
        self.next();
        Ok(Node::Sequence(all))
    }

    fn class(&mut self) -> Result<Node, String> {
        self.next();
        let negated = self.take('^');
        let mut ranges = Ranges::new();
        while self.peek() != Some(']') {
            let first = self.character()?;
            let mut ahead = self.rest.clone();
            let is_range = ahead.next() == Some('-') && ahead.next() != Some(']');
            let last = if is_range {
                self.next();
                self.character()?
            } else {
                first
            };
            if last < first {
                return self.wrong("a range of characters ends before it begins");
            }
            ranges.push((first, last));
        }
        self.next();
        let ranges = ordered(ranges);
        let ranges = if negated { others(&ranges) } else { ranges };
        if ranges.is_empty() {
            return self.wrong("a class has no characters");
        }
        Ok(self.mention(ranges))
    }

    /// A character of a literal or a class, by itself or by its escape.
    fn character(&mut self) -> Result<u32, String> {
        let c = match self.next() {
            None | Some('\n') => return self.wrong("a literal or a class has no end"),
            Some('\\') => match self.next() {
                Some('x') => return self.hexadecimal(2),
                Some('u') => return self.hexadecimal(4),
                Some('U') => return self.hexadecimal(8),
                Some('t') => '\t',
                Some('r') => '\r',
                Some('n') => '\n',
                Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/')) => c,
                Some(c) => {
                    let c = c.escape_debug();
                    return self.wrong(format!("there is no escape `\\{c}`"));
                }
                None => return self.wrong("an escape has no end"),
            },
            Some(c) => c,
        };
        Ok(c.into())
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<u32, String> {
        let mut code = 0u32;
        for _ in 0..digits {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(16)) else {
                return self.wrong(format!("an escape needs {digits} hexadecimal digits"));
            };
            self.next();
            code = code.wrapping_mul(16).wrapping_add(digit);
        }
        match char::from_u32(code) {
            Some(_) => Ok(code),
            None => self.wrong("an escape names no character"),
        }
    }

    fn mention(&mut self, ranges: Ranges) -> Node {
        let classes = &mut self.grammar.classes;
        let class = *self.classes.entry(ranges).or_insert_with_key(|ranges| {
            classes.push(ranges.clone());
            classes.len() - 1
        });
        let place = self.grammar.places;
        self.grammar.places += 1;
        Node::Class { class, place }
    }

    fn name(&mut self) -> &'a str {
        let text = self.rest.as_str();
        let rest = text.trim_start_matches(is_name);
        self.rest = rest.chars();
        &text[..text.len() - rest.len()]
    }

    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => {}
                '\r' | '\n' if lines => {}
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n' && c != '\r') {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn take(&mut self, c: char) -> bool {
        let there = self.peek() == Some(c);
        if there {
            self.next();
        }
        there
    }

    fn take_text(&mut self, text: &str) -> bool {
        let rest = self.rest.as_str().strip_prefix(text);
        if let Some(rest) = rest {
            self.rest = rest.chars();
        }
        rest.is_some()
    }

    fn wrong<T>(&self, why: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("line {}: {why}", self.line))
    }
}

#[cfg(test)]
mod tests;
