//! Which repetitions of a grammar are read as one lexeme.
//!
//! GBNF is about characters; llguidance has a lexer that takes the longest
//! match, and a parser whose work grows with the lexemes of a text. With one
//! lexeme a character the lexer has nothing to choose, so the grammar is exact,
//! but what may follow `[^"]*` is then looked up character by character for
//! each token of the vocabulary. So a repetition of a wide class becomes one
//! lexeme where that changes nothing: it is regular, never empty, is not
//! followed by itself, and wherever it may go on, no place outside of it that
//! could be reached by the same text takes a character that it takes, too.
//!
//! What could be reached is an upper bound: pairs of places of the grammar
//! without its stack. Where the work for it is spent, there are no lexemes.

use super::{Gbnf, Node};
use std::collections::HashSet;

/// Most places that are compared with one another.
const MOST_PLACES: usize = 4096;
/// Most words of sets, and ranges of classes, that are looked at.
const MOST_WORK: usize = 40_000_000;
/// Of a pair of places, which bounds how many wait: 16 bytes each.
const A_PAIR: usize = 20;
/// A class of that many characters is wide.
const WIDE: u32 = 40;
/// Most nodes of a lexeme.
const MOST_NODES: usize = 512;
/// Times that smaller repetitions are tried where larger ones were unsafe.
const ROUNDS: usize = 6;

/// A grammar whose rules mention lexemes.
pub(super) struct Lexed {
    pub grammar: Gbnf,
    /// Without rules in them.
    pub lexemes: Vec<Node>,
}

/// Makes lexemes of the repetitions that can be.
pub(super) fn find(grammar: Gbnf) -> Lexed {
    let mut rejected = HashSet::new();
    for _ in 0..ROUNDS {
        let Some(mut tried) = Try::new(&grammar, &rejected) else {
            break;
        };
        if tried.lexemes.is_empty() {
            break;
        }
        let Some(bad) = tried.unsafe_ones() else {
            break;
        };
        if bad.is_empty() {
            return Lexed {
                grammar: tried.grammar,
                lexemes: tried.lexemes,
            };
        }
        rejected.extend(bad.iter().map(|i| tried.ids[*i]));
    }
    Lexed {
        grammar,
        lexemes: Vec::new(),
    }
}

/// Lexemes that are to be proven.
struct Try {
    grammar: Gbnf,
    lexemes: Vec<Node>,
    /// The repetition that each was.
    ids: Vec<usize>,
    work: usize,
}

impl Try {
    fn new(grammar: &Gbnf, rejected: &HashSet<usize>) -> Option<Self> {
        let mut tried = Self {
            grammar: grammar.clone(),
            lexemes: Vec::new(),
            ids: Vec::new(),
            work: MOST_WORK,
        };
        for i in 0..tried.grammar.rules.len() {
            let mut rule = std::mem::replace(&mut tried.grammar.rules[i], Node::Lexeme(0));
            tried.replace(&mut rule, grammar, rejected);
            tried.grammar.rules[i] = rule;
        }
        (tried.grammar.places <= MOST_PLACES).then_some(tried)
    }

    /// Puts lexemes in the places of repetitions, the outermost first.
    fn replace(&mut self, node: &mut Node, all: &Gbnf, rejected: &HashSet<usize>) {
        match node {
            Node::Class { .. } | Node::Rule(_) | Node::Lexeme(_) => {}
            Node::Sequence(nodes) | Node::Either(nodes) => {
                for node in nodes {
                    self.replace(node, all, rejected);
                }
            }
            Node::Repeat {
                id,
                node: inner,
                least,
                most,
            } => {
                let long = most.is_none_or(|most| most > 1);
                if long && !rejected.contains(id) {
                    let (mut left, mut wide) = (MOST_NODES, false);
                    let places = self.grammar.places;
                    if let Some(body) = self.regular(inner, all, 0, &mut left, &mut wide)
                        && wide
                        && !nullable(&body, &[])
                    {
                        let optional = *least == 0;
                        self.ids.push(*id);
                        let lexeme = Node::Lexeme(self.lexemes.len());
                        self.lexemes.push(Node::Repeat {
                            id: *id,
                            node: Box::new(body),
                            least: (*least).max(1),
                            most: *most,
                        });
                        *node = match optional {
                            true => Node::Either(vec![Node::Sequence(Vec::new()), lexeme]),
                            false => lexeme,
                        };
                        return;
                    }
                    self.grammar.places = places;
                }
                self.replace(inner, all, rejected);
            }
        }
    }

    /// The same without rules, with places of its own; `None` where it is too large
    /// or comes back to itself.
    fn regular(
        &mut self,
        node: &Node,
        all: &Gbnf,
        depth: usize,
        left: &mut usize,
        wide: &mut bool,
    ) -> Option<Node> {
        *left = left.checked_sub(1)?;
        if depth > 100 {
            return None;
        }
        let mut each = |nodes: &[Node]| -> Option<Vec<Node>> {
            let each = nodes
                .iter()
                .map(|n| self.regular(n, all, depth + 1, left, wide));
            each.collect()
        };
        Some(match node {
            Node::Class { class, .. } => {
                let characters = all.classes[*class].iter().map(|(a, b)| b - a + 1);
                *wide |= characters.sum::<u32>() >= WIDE;
                let place = self.grammar.places;
                self.grammar.places += 1;
                Node::Class {
                    class: *class,
                    place,
                }
            }
            Node::Rule(rule) => self.regular(&all.rules[*rule], all, depth + 1, left, wide)?,
            Node::Sequence(nodes) => Node::Sequence(each(nodes)?),
            Node::Either(nodes) => Node::Either(each(nodes)?),
            Node::Repeat {
                id,
                node,
                least,
                most,
            } => Node::Repeat {
                id: *id,
                node: Box::new(self.regular(node, all, depth + 1, left, wide)?),
                least: *least,
                most: *most,
            },
            Node::Lexeme(_) => return None,
        })
    }

    /// The lexemes that may change what the grammar takes; `None` when the work is
    /// spent.
    fn unsafe_ones(&mut self) -> Option<HashSet<usize>> {
        let n = self.grammar.places;
        let mut places = Places::of(self)?;
        // Places that the same text may lead to.
        let mut together = vec![Set::new(n); n];
        let mut todo = Vec::new();
        let start = places.first[self.grammar.root].clone();
        for a in start.iter() {
            let more = together[a].add(&start);
            self.spend(more.len() * A_PAIR)?;
            todo.extend(more.into_iter().map(|b| (a, b)));
        }
        let mut bad = std::mem::take(&mut places.followed_by_itself);
        while let Some((a, b)) = todo.pop() {
            let words = n.div_ceil(64);
            self.spend(1)?;
            if !self.overlap(places.class[a], places.class[b])? {
                continue;
            }
            if places.owner[a] != places.owner[b] {
                bad.extend(places.owner[a]);
                bad.extend(places.owner[b]);
            }
            for next in places.follow[a].iter() {
                self.spend(words)?;
                let more = together[next].add(&places.follow[b]);
                self.spend(more.len() * A_PAIR)?;
                todo.extend(more.into_iter().map(|other| (next, other)));
            }
        }
        Some(bad)
    }

    fn spend(&mut self, work: usize) -> Option<()> {
        self.work = self.work.checked_sub(work)?;
        Some(())
    }

    /// Whether two classes have a character in common.
    fn overlap(&mut self, a: usize, b: usize) -> Option<bool> {
        if a == b {
            return Some(true);
        }
        let (mut i, mut j) = (0, 0);
        loop {
            let classes = &self.grammar.classes;
            let (Some(x), Some(y)) = (classes[a].get(i), classes[b].get(j)) else {
                return Some(false);
            };
            if x.0 <= y.1 && y.0 <= x.1 {
                return Some(true);
            }
            if x.1 < y.1 {
                i += 1
            } else {
                j += 1
            }
            self.spend(1)?;
        }
    }
}

/// Whether the empty text is one of a node's, where rules are by `rules`.
fn nullable(node: &Node, rules: &[bool]) -> bool {
    match node {
        Node::Class { .. } | Node::Lexeme(_) => false,
        Node::Rule(rule) => rules.get(*rule).copied().unwrap_or(false),
        Node::Sequence(all) => all.iter().all(|n| nullable(n, rules)),
        Node::Either(all) => all.iter().any(|n| nullable(n, rules)),
        Node::Repeat { node, least, .. } => *least == 0 || nullable(node, rules),
    }
}

/// What begins and ends where: the grammar without its stack.
struct Places {
    class: Vec<usize>,
    /// The lexeme that a place is in.
    owner: Vec<Option<usize>>,
    /// By rule: the places that its texts begin and end at.
    first: Vec<Set>,
    last: Vec<Set>,
    empty: Vec<bool>,
    follow: Vec<Set>,
    followed_by_itself: HashSet<usize>,
}

impl Places {
    fn of(tried: &mut Try) -> Option<Self> {
        let (n, rules) = (tried.grammar.places, tried.grammar.rules.len());
        let mut places = Self {
            class: vec![0; n],
            owner: vec![None; n],
            first: vec![Set::new(n); rules],
            last: vec![Set::new(n); rules],
            empty: vec![false; rules],
            follow: vec![Set::new(n); n],
            followed_by_itself: HashSet::new(),
        };
        loop {
            let before = places.empty.clone();
            for (i, rule) in tried.grammar.rules.iter().enumerate() {
                places.empty[i] = nullable(rule, &places.empty);
            }
            tried.work = tried.work.checked_sub(n)?;
            if places.empty == before {
                break;
            }
        }
        // Sets of rules first, until they grow no more; then what follows what.
        for follows in [false, true] {
            loop {
                let mut grown = false;
                for i in 0..rules {
                    let rule = &tried.grammar.rules[i];
                    let (first, last) =
                        places.walk(rule, &tried.lexemes, None, follows, &mut tried.work)?;
                    grown |= !places.first[i].add(&first).is_empty();
                    grown |= !places.last[i].add(&last).is_empty();
                }
                if !grown {
                    break;
                }
            }
        }
        Some(places)
    }

    /// Where a node's texts begin and end. `follows`: what follows what in it is kept.
    fn walk(
        &mut self,
        node: &Node,
        lexemes: &[Node],
        owner: Option<usize>,
        follows: bool,
        work: &mut usize,
    ) -> Option<(Set, Set)> {
        let n = self.class.len();
        *work = work.checked_sub(n.div_ceil(64) + 1)?;
        let none = || (Set::new(n), Set::new(n));
        match node {
            Node::Class { class, place } => {
                self.class[*place] = *class;
                self.owner[*place] = owner;
                let (mut first, _) = none();
                first.insert(*place);
                Some((first.clone(), first))
            }
            Node::Rule(rule) => Some((self.first[*rule].clone(), self.last[*rule].clone())),
            Node::Lexeme(i) => self.walk(&lexemes[*i], lexemes, Some(*i), follows, work),
            Node::Either(all) => {
                let (mut first, mut last) = none();
                for one in all {
                    let (f, l) = self.walk(one, lexemes, owner, follows, work)?;
                    first.add(&f);
                    last.add(&l);
                }
                Some((first, last))
            }
            Node::Sequence(all) => {
                let (mut first, mut last) = none();
                let mut empty = true;
                for one in all {
                    let (f, l) = self.walk(one, lexemes, owner, follows, work)?;
                    if follows {
                        self.join(&last, &f, owner, work)?;
                    }
                    if empty {
                        first.add(&f);
                    }
                    if nullable(one, &self.empty) {
                        last.add(&l);
                    } else {
                        (last, empty) = (l, false);
                    }
                }
                Some((first, last))
            }
            Node::Repeat { most: Some(0), .. } => Some(none()),
            Node::Repeat { node, most, .. } => {
                let (first, last) = self.walk(node, lexemes, owner, follows, work)?;
                if follows && *most != Some(1) {
                    self.join(&last, &first, owner, work)?;
                }
                Some((first, last))
            }
        }
    }

    fn join(
        &mut self,
        last: &Set,
        first: &Set,
        inside: Option<usize>,
        work: &mut usize,
    ) -> Option<()> {
        for a in last.iter() {
            *work = work.checked_sub(first.words.len())?;
            self.follow[a].add(first);
            if inside.is_none()
                && let Some(lexeme) = self.owner[a]
                && first.iter().any(|b| self.owner[b] == Some(lexeme))
            {
                self.followed_by_itself.insert(lexeme);
            }
        }
        Some(())
    }
}

/// A set of places.
#[derive(Clone)]
struct Set {
    words: Vec<u64>,
}

impl Set {
    fn new(n: usize) -> Self {
        Self {
            words: vec![0; n.div_ceil(64)],
        }
    }

    fn insert(&mut self, place: usize) {
        self.words[place / 64] |= 1 << (place % 64);
    }

    /// Adds all of another one: those that were not there.
    fn add(&mut self, other: &Self) -> Vec<usize> {
        let mut new = Vec::new();
        for (i, (word, more)) in self.words.iter_mut().zip(&other.words).enumerate() {
            new.extend(bits(*more & !*word).map(|bit| i * 64 + bit));
            *word |= more;
        }
        new
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let words = self.words.iter().enumerate();
        words.flat_map(|(i, word)| bits(*word).map(move |bit| i * 64 + bit))
    }
}

fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}
