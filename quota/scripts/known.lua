-- Answers the ids of all leases that the account's memory still knows, ended ones too.
open_account(keys, arguments)
return call('HKEYS', BASE .. 'l')
