-- Answers the ids of all leases that the account's memory still knows, ended ones too.
return redis.call('HKEYS', BASE .. 'l')
