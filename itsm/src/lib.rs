//! The desk part of the meta machine: tickets, status, priority, audit
