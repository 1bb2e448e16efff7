//! The tree of an expression.

use crate::functions::Function;
use hindcast_model::Matcher;

/// Bytes of the expression's text, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// A node. Equality is that of the trees: places in the text do not count.
#[derive(Clone, Debug)]
pub struct Expr {
    pub kind: Kind,
    pub span: Span,
    /// Levels below and including this one.
    pub(crate) depth: u16,
}

impl PartialEq for Expr {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

/// A number; equality is by bits, so that NaN equals itself.
#[derive(Clone, Copy, Debug)]
pub struct Literal(pub f64);

impl PartialEq for Literal {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Number(Literal),
    String(String),
    Vector(Selector),
    /// A selector over a window: left-open, right-closed.
    Matrix {
        selector: Selector,
        range_ms: i64,
    },
    Subquery {
        expr: Box<Expr>,
        range_ms: i64,
        /// `None`: the evaluator's default.
        step_ms: Option<i64>,
        offset_ms: i64,
        at: Option<At>,
    },
    Call {
        function: &'static Function,
        args: Vec<Expr>,
    },
    Aggregate {
        op: AggregateOp,
        grouping: Option<Grouping>,
        param: Option<Box<Expr>>,
        expr: Box<Expr>,
    },
    Binary {
        op: BinaryOp,
        lhs: Box<Expr>,
        rhs: Box<Expr>,
        /// `bool`: comparisons give 0 or 1 instead of filtering.
        as_bool: bool,
        /// Between two vectors only.
        matching: Option<Matching>,
    },
    Negate(Box<Expr>),
    /// A unary plus: keeps its operand as it is.
    Plus(Box<Expr>),
    Paren(Box<Expr>),
}

/// Which series, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector {
    /// The metric name written before the braces, if any; `matchers` holds it too.
    pub name: Option<String>,
    pub matchers: Vec<Matcher>,
    /// How far back; negative: ahead.
    pub offset_ms: i64,
    pub at: Option<At>,
}

/// `@`: a fixed instant instead of the evaluation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Ms(i64),
    Start,
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    pub without: bool,
    pub labels: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    OneToOne,
    /// `group_left`
    ManyToOne,
    /// `group_right`
    OneToMany,
    /// Set operators.
    ManyToMany,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    pub cardinality: Cardinality,
    /// `on(labels)`; else `ignoring(labels)`.
    pub on: bool,
    pub labels: Vec<String>,
    /// Labels that `group_left`/`group_right` copies from the "one" side.
    pub include: Vec<String>,
}

impl Matching {
    /// What holds when nothing is written.
    pub fn plain(op: BinaryOp) -> Self {
        Self {
            cardinality: if op.is_set() {
                Cardinality::ManyToMany
            } else {
                Cardinality::OneToOne
            },
            on: false,
            labels: vec![],
            include: vec![],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregateOp {
    Sum,
    Avg,
    Count,
    Min,
    Max,
    Group,
    Stddev,
    Stdvar,
    Topk,
    Bottomk,
    CountValues,
    Quantile,
    Limitk,
    LimitRatio,
}

impl AggregateOp {
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::Sum, "sum"),
        (Self::Avg, "avg"),
        (Self::Count, "count"),
        (Self::Min, "min"),
        (Self::Max, "max"),
        (Self::Group, "group"),
        (Self::Stddev, "stddev"),
        (Self::Stdvar, "stdvar"),
        (Self::Topk, "topk"),
        (Self::Bottomk, "bottomk"),
        (Self::CountValues, "count_values"),
        (Self::Quantile, "quantile"),
        (Self::Limitk, "limitk"),
        (Self::LimitRatio, "limit_ratio"),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(op, _)| *op == self)
            .map_or("", |(_, name)| name)
    }

    /// In any case.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, name)| name.eq_ignore_ascii_case(word))
            .map(|(op, _)| *op)
    }

    /// Whether a parameter comes before the expression.
    pub const fn has_param(self) -> bool {
        matches!(
            self,
            Self::Topk | Self::Bottomk | Self::CountValues | Self::Quantile | Self::Limitk | Self::LimitRatio
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    Or,
    And,
    Unless,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Atan2,
    Pow,
    /// Keeps the observations of a histogram that lie below a value.
    TrimUpper,
    /// Those that lie above it.
    TrimLower,
}

impl BinaryOp {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Or => "or",
            Self::And => "and",
            Self::Unless => "unless",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Atan2 => "atan2",
            Self::Pow => "^",
            Self::TrimUpper => "</",
            Self::TrimLower => ">/",
        }
    }

    pub const fn is_set(self) -> bool {
        matches!(self, Self::Or | Self::And | Self::Unless)
    }

    pub const fn is_comparison(self) -> bool {
        matches!(self, Self::Eq | Self::Ne | Self::Lt | Self::Le | Self::Gt | Self::Ge)
    }

    /// Of a histogram and a number.
    pub const fn is_trim(self) -> bool {
        matches!(self, Self::TrimUpper | Self::TrimLower)
    }

    /// Binds tighter when higher.
    pub const fn precedence(self) -> u8 {
        match self {
            Self::Or => 1,
            Self::And | Self::Unless => 2,
            Self::Eq | Self::Ne | Self::Lt | Self::Le | Self::Gt | Self::Ge | Self::TrimUpper | Self::TrimLower => 3,
            Self::Add | Self::Sub => 4,
            Self::Mul | Self::Div | Self::Mod | Self::Atan2 => 5,
            Self::Pow => 6,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    Scalar,
    String,
    Vector,
    Matrix,
}

impl ValueType {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::String => "string",
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
        }
    }
}

impl Expr {
    pub fn value_type(&self) -> ValueType {
        match &self.kind {
            Kind::Number(_) => ValueType::Scalar,
            Kind::String(_) => ValueType::String,
            Kind::Vector(_) | Kind::Aggregate { .. } => ValueType::Vector,
            Kind::Matrix { .. } | Kind::Subquery { .. } => ValueType::Matrix,
            Kind::Call { function, .. } => function.returns,
            Kind::Binary { lhs, rhs, .. } => {
                if lhs.value_type() == ValueType::Scalar && rhs.value_type() == ValueType::Scalar {
                    ValueType::Scalar
                } else {
                    ValueType::Vector
                }
            }
            Kind::Negate(e) | Kind::Plus(e) | Kind::Paren(e) => e.value_type(),
        }
    }

    /// The node inside any parentheses and unary plus signs.
    pub fn bare(&self) -> &Self {
        match &self.kind {
            Kind::Paren(e) | Kind::Plus(e) => e.bare(),
            _ => self,
        }
    }

    /// Calls `f` for every selector, from left to right.
    pub fn selectors<'a>(&'a self, f: &mut impl FnMut(&'a Selector)) {
        match &self.kind {
            Kind::Number(_) | Kind::String(_) => {}
            Kind::Vector(s) | Kind::Matrix { selector: s, .. } => f(s),
            Kind::Subquery { expr, .. } | Kind::Negate(expr) | Kind::Plus(expr) | Kind::Paren(expr) => {
                expr.selectors(f);
            }
            Kind::Call { args, .. } => args.iter().for_each(|a| a.selectors(f)),
            Kind::Aggregate { param, expr, .. } => {
                if let Some(p) = param {
                    p.selectors(f);
                }
                expr.selectors(f);
            }
            Kind::Binary { lhs, rhs, .. } => {
                lhs.selectors(f);
                rhs.selectors(f);
            }
        }
    }
}
