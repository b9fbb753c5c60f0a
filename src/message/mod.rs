//! Records against requests and replies.
