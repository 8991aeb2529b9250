//! CEL is the language of the rules in a schema. This reads and evaluates the part of it that the rules of Hooks
//! are written in; a rule with anything else in it does not compile, and a test compiles them all.

use std::time::Duration;

use regex::Regex;

use super::yaml::{Node, Value};
use crate::hook::parse_duration;

/// A rule, ready to be evaluated.
#[derive(Debug)]
pub struct Rule(Expr);

#[derive(Debug)]
enum Expr {
    Text(String),
    Int(i64),
    Name(String),
    Field(Box<Expr>, String),
    Has(Box<Expr>, String),
    List(Vec<Expr>),
    Matches(Box<Expr>, Regex),
    Span(Box<Expr>),
    Size(Box<Expr>),
    Each(Box<Expr>, Macro, String, Box<Expr>),
    Not(Box<Expr>),
    Both(Box<Expr>, Box<Expr>),
    Either(Box<Expr>, Box<Expr>),
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, &'static str, Box<Expr>),
    Add(Box<Expr>, Box<Expr>),
}

#[derive(Clone, Copy, Debug)]
enum Macro {
    All,
    ExistsOne,
    Filter,
}

#[derive(Clone, Debug)]
enum Val<'a> {
    Bool(bool),
    Int(i64),
    Text(String),
    Span(Duration),
    List(Vec<Val<'a>>),
    Node(&'a Node),
}

/// Names and what they stand for, the innermost last.
type Scope<'a, 's> = Vec<(&'s str, Val<'a>)>;

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What this does not know, in the words of the rule.
    pub fn compile(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        let expr = parser.ternary()?;
        match parser.tokens.get(parser.at) {
            None => Ok(Self(expr)),
            Some(token) => Err(format!("{token:?} is not expected")),
        }
    }

    /// Whether it holds of a value.
    ///
    /// # Errors
    /// What it needs of the value and does not find.
    pub fn holds(&self, node: &Node) -> Result<bool, String> {
        truth(self.0.eval(&mut vec![("self", Val::Node(node))])?)
    }
}

fn truth(value: Val) -> Result<bool, String> {
    match value {
        Val::Bool(value) => Ok(value),
        Val::Node(Node { value: Value::Bool(value), .. }) => Ok(*value),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

fn text(value: Val) -> Result<String, String> {
    match value {
        Val::Text(text) => Ok(text),
        Val::Node(Node { value: Value::Text(text), .. }) => Ok(text.clone()),
        other => Err(format!("{other:?} is no text")),
    }
}

fn items(value: Val<'_>) -> Result<Vec<Val<'_>>, String> {
    match value {
        Val::List(items) => Ok(items),
        Val::Node(Node { value: Value::List(items), .. }) => Ok(items.iter().map(Val::Node).collect()),
        other => Err(format!("{other:?} is no list")),
    }
}

fn field<'a>(value: &Val<'a>, name: &str) -> Option<&'a Node> {
    match value {
        Val::Node(node) => node.get(name),
        _ => None,
    }
}

impl Expr {
    fn eval<'a, 's>(&'s self, scope: &mut Scope<'a, 's>) -> Result<Val<'a>, String> {
        Ok(match self {
            Self::Text(text) => Val::Text(text.clone()),
            Self::Int(number) => Val::Int(*number),
            Self::Name(name) => {
                let found = scope.iter().rev().find(|(known, _)| known == name);
                found.ok_or_else(|| format!("there is no {name}"))?.1.clone()
            }
            Self::Field(of, name) => {
                let node =
                    field(&of.eval(scope)?, name).ok_or_else(|| format!("there is no field {name}"))?;
                Val::Node(node)
            }
            Self::Has(of, name) => Val::Bool(field(&of.eval(scope)?, name).is_some()),
            Self::List(items) => {
                Val::List(items.iter().map(|item| item.eval(scope)).collect::<Result<_, _>>()?)
            }
            Self::Matches(of, regex) => Val::Bool(regex.is_match(&text(of.eval(scope)?)?)),
            Self::Span(of) => Val::Span(parse_duration(&text(of.eval(scope)?)?)?),
            Self::Size(of) => {
                let size = items(of.eval(scope)?)?.len();
                Val::Int(i64::try_from(size).unwrap_or(i64::MAX))
            }
            Self::Each(of, kind, name, body) => {
                let list = items(of.eval(scope)?)?;
                let mut kept = Vec::new();
                let count = list.len();
                for item in list {
                    scope.push((name, item.clone()));
                    let holds = body.eval(scope).and_then(truth);
                    scope.pop();
                    if holds? {
                        kept.push(item);
                    }
                }
                match kind {
                    Macro::All => Val::Bool(kept.len() == count),
                    Macro::ExistsOne => Val::Bool(kept.len() == 1),
                    Macro::Filter => Val::List(kept),
                }
            }
            Self::Not(of) => Val::Bool(!truth(of.eval(scope)?)?),
            // Either side decides, whatever is wrong with the other.
            Self::Both(a, b) => Val::Bool(match (a.eval(scope).and_then(truth), b) {
                (Ok(false), _) => false,
                (Ok(true), b) => truth(b.eval(scope)?)?,
                (Err(error), b) => match b.eval(scope).and_then(truth) {
                    Ok(false) => false,
                    _ => return Err(error),
                },
            }),
            Self::Either(a, b) => Val::Bool(match (a.eval(scope).and_then(truth), b) {
                (Ok(true), _) => true,
                (Ok(false), b) => truth(b.eval(scope)?)?,
                (Err(error), b) => match b.eval(scope).and_then(truth) {
                    Ok(true) => true,
                    _ => return Err(error),
                },
            }),
            Self::If(condition, a, b) => {
                if truth(condition.eval(scope)?)? {
                    a.eval(scope)?
                } else {
                    b.eval(scope)?
                }
            }
            Self::Compare(a, operator, b) => {
                let order = compare(a.eval(scope)?, b.eval(scope)?)?;
                Val::Bool(match *operator {
                    "==" => order.is_eq(),
                    "!=" => order.is_ne(),
                    "<=" => order.is_le(),
                    ">=" => order.is_ge(),
                    "<" => order.is_lt(),
                    _ => order.is_gt(),
                })
            }
            Self::Add(a, b) => Val::Text(text(a.eval(scope)?)? + &text(b.eval(scope)?)?),
        })
    }
}

fn compare(a: Val, b: Val) -> Result<std::cmp::Ordering, String> {
    match (&a, &b) {
        (Val::Int(a), Val::Int(b)) => Ok(a.cmp(b)),
        (Val::Span(a), Val::Span(b)) => Ok(a.cmp(b)),
        _ => Ok(text(a)?.cmp(&text(b)?)),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Text(String),
    Int(i64),
    Name(String),
    Sign(&'static str),
}

const SIGNS: [&str; 19] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "?", ":", "(", ")", "[", "]", ",", ".", "+", "-"];

fn tokens(rule: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = rule.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = if matches!(first, '\'' | '"') {
            quoted(&rest[1..], first)?
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Sign(sign), &rest[sign.len()..])
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let token = match word.parse() {
                Ok(number) => Token::Int(number),
                Err(_) if word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
                    // A name that is a word of CEL is written so.
                    let plain = word.strip_prefix("__").and_then(|word| word.strip_suffix("__"));
                    Token::Name(plain.unwrap_or(word).to_owned())
                }
                Err(_) => return Err(format!("{rest:?} is not understood")),
            };
            (token, after)
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

fn quoted(rest: &str, quote: char) -> Result<(Token, &str), String> {
    let mut text = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((Token::Text(text), &rest[at + 1..])),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some(c @ ('\\' | '\'' | '"')) => text.push(c),
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                _ => return Err("an escape is not understood".into()),
            },
            c => text.push(c),
        }
    }
    Err("a text does not end".into())
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn takes(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(known)) if *known == sign);
        self.at += usize::from(found);
        found
    }

    fn wants(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { Err(format!("{sign} is expected")) }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.tokens.get(self.at) {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(name.clone())
            }
            _ => Err("a name is expected".into()),
        }
    }

    fn ternary(&mut self) -> Result<Expr, String> {
        let condition = self.either()?;
        if !self.takes("?") {
            return Ok(condition);
        }
        let then = self.either()?;
        self.wants(":")?;
        Ok(Expr::If(Box::new(condition), Box::new(then), Box::new(self.ternary()?)))
    }

    fn either(&mut self) -> Result<Expr, String> {
        let mut left = self.both()?;
        while self.takes("||") {
            left = Expr::Either(Box::new(left), Box::new(self.both()?));
        }
        Ok(left)
    }

    fn both(&mut self) -> Result<Expr, String> {
        let mut left = self.relation()?;
        while self.takes("&&") {
            left = Expr::Both(Box::new(left), Box::new(self.relation()?));
        }
        Ok(left)
    }

    fn relation(&mut self) -> Result<Expr, String> {
        let left = self.sum()?;
        for operator in ["==", "!=", "<=", ">=", "<", ">"] {
            if self.takes(operator) {
                return Ok(Expr::Compare(Box::new(left), operator, Box::new(self.sum()?)));
            }
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr, String> {
        let mut left = self.unary()?;
        while self.takes("+") {
            left = Expr::Add(Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, String> {
        if self.takes("!") {
            return Ok(Expr::Not(Box::new(self.unary()?)));
        }
        let mut expr = self.primary()?;
        while self.takes(".") {
            let name = self.name()?;
            expr =
                if self.takes("(") { self.method(expr, &name)? } else { Expr::Field(Box::new(expr), name) };
        }
        Ok(expr)
    }

    fn method(&mut self, of: Expr, name: &str) -> Result<Expr, String> {
        let of = Box::new(of);
        let kind = match name {
            "size" => {
                self.wants(")")?;
                return Ok(Expr::Size(of));
            }
            "matches" => {
                let Expr::Text(pattern) = self.primary()? else { return Err("a pattern is expected".into()) };
                self.wants(")")?;
                return Ok(Expr::Matches(of, Regex::new(&pattern).map_err(|error| error.to_string())?));
            }
            "all" => Macro::All,
            "exists_one" => Macro::ExistsOne,
            "filter" => Macro::Filter,
            _ => return Err(format!("{name} is not known")),
        };
        let variable = self.name()?;
        self.wants(",")?;
        let body = self.ternary()?;
        self.wants(")")?;
        Ok(Expr::Each(of, kind, variable, Box::new(body)))
    }

    fn primary(&mut self) -> Result<Expr, String> {
        if self.takes("(") {
            let expr = self.ternary()?;
            self.wants(")")?;
            return Ok(expr);
        }
        if self.takes("[") {
            let mut items = Vec::new();
            while !self.takes("]") {
                items.push(self.ternary()?);
                if !self.takes(",") {
                    self.wants("]")?;
                    break;
                }
            }
            return Ok(Expr::List(items));
        }
        let token = self.tokens.get(self.at).cloned().ok_or("something is missing at the end")?;
        self.at += 1;
        match token {
            Token::Text(text) => Ok(Expr::Text(text)),
            Token::Int(number) => Ok(Expr::Int(number)),
            Token::Name(name) if self.takes("(") => {
                let argument = self.ternary()?;
                self.wants(")")?;
                match (name.as_str(), argument) {
                    ("has", Expr::Field(of, field)) => Ok(Expr::Has(of, field)),
                    ("duration", argument) => Ok(Expr::Span(Box::new(argument))),
                    _ => Err(format!("{name} is not known")),
                }
            }
            Token::Name(name) => Ok(Expr::Name(name)),
            Token::Sign(sign) => Err(format!("{sign} is not expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::yaml, *};

    fn holds(rule: &str, value: &str) -> Result<bool, String> {
        let (documents, _) = yaml::read(value);
        Rule::compile(rule)?.holds(&documents[0].root)
    }

    #[test]
    fn rules_say_what_cel_says() {
        for (rule, value, expected) in [
            ("self.matches('^a+$')", "aaa", true),
            ("self.matches('[^ \\\\t]')", "'  '", false),
            ("self == '' || self.matches('b')", "''", true),
            ("!self.matches('(?i)^te|a-.*$')", "A-b", false),
            ("duration(self) <= duration('24h') && duration(self) >= duration('10s')", "1m", true),
            ("self.matches('^x') && duration(self) <= duration('1h')", "z", false),
            ("[has(self.a), has(self.b)].filter(is, is).size() == 1", "{a: 1}", true),
            ("[has(self.a), has(self.b)].filter(is, is).size() == 1", "{a: 1, b: ~}", true),
            ("[has(self.a), has(self.b)].filter(is, is).size() == 1", "{a: 1, b: 1}", false),
            ("self.all(a, self.exists_one(b, a.x + '/' == b.x + '/'))", "[{x: q}, {x: p}]", true),
            ("self.all(a, self.exists_one(b, a.x == b.x))", "[{x: q}, {x: q}]", false),
            ("(has(self.a) ? self.a : 'z') == 'z'", "{}", true),
            ("has(self.__namespace__) && self.__namespace__ != ''", "{namespace: x}", true),
        ] {
            assert_eq!(holds(rule, value), Ok(expected), "{rule} of {value}");
        }
        assert!(holds("self.a == 'x'", "{}").is_err());
        assert!(holds("self.a == 'x' || true_", "{}").is_err());
    }

    #[test]
    fn what_is_not_known_does_not_compile() {
        for rule in [
            "self.lowerAscii() == 'a'",
            "self.matches('(')",
            "self ==",
            "self.x(",
            "'a",
            "a b",
            "self - 1",
            "",
        ] {
            assert!(Rule::compile(rule).is_err(), "{rule}");
        }
    }
}
