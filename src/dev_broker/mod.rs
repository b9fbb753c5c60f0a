//! dev_broker
