#: a line ends with its line
def area(radius):
    return ‸
#> pi * radius ** 2
#> 
#> 
#> def volume(radius):
#= pi * radius ** 2

#: a block ends where the indentation does
def area(radius):‸
#> 
#>     check(radius)
#>     return pi * radius ** 2
#> 
#> 
#> def volume(radius):
#>     return 4
#= 
#=     check(radius)
#=     return pi * radius ** 2

#: a block at a cursor that is indented already
class Circle:
    def area(self):
        ‸

    def other(self):
        pass
#> if self.radius:
#>             return pi * self.radius ** 2
#>         return 0
#> 
#>     def more(self):
#= if self.radius:
#=             return pi * self.radius ** 2
#=         return 0

#: the bracket behind the cursor is not written again
print(area(‸))
#> radius))
#= radius

#: the rest of the line is not written again
for radius in ‸ radii:
#> all the radii:
#= all the

#: what stands below is not written again
def area(radius):
    square = ‸
    return pi * square
#> radius ** 2
#>     return pi * square
#= radius ** 2

#: a line that the next one says already
def area(radius):
    ‸
    return pi * radius ** 2

area(1)
#> return pi * radius ** 2
#> 
#! stands below already

#: a line that the last one said
values.append(1)
‸
#> values.append(1)
#! stands above already

#: a loop is no completion
raise MCPError.‸
#> from_error(MCPError.from_error(MCPError.from_error(MCPError.from_error(MCPError.from_error(
#! loop

#: whole lines before a loop stay
def f():‸
#> 
#>     start()
#>     step(1)
#>     step(1)
#>     step(1)
#>     step(1)
#= 
#=     start()
#=     step(1)

#: a bracket that closes nothing
total = sum(values)‸
#> )
#! unbalanced brackets

#: code up to a bracket that closes nothing
total = ‸
#> sum(values)) + 1
#= sum(values)

#: brackets in strings and comments close nothing
smile = ‸
#> ":)"  # and :(
#= ":)"  # and :(

#: a block that is not indented
class Circle:
    def area(self):‸
#> 
#>     return 1
#! empty

#: tabs in a document of spaces
if a:
    b()
    c()
if d:‸
#> 
#>     e()
#> 	f()
#= 
#=     e()

#: the path is no code
‸
#> # golden.py
#> import os
#! echo of the path

#: too short
x = ‸
#> 1
#! too short

#: nothing
x = ‸
#> 
#! empty

#: white space at its end goes
x = ‸
#> value   
#> y
#= value

#: no loop: a row of numbers
zeros = ‸
#> [0, 0, 0, 0, 0, 0, 0, 0, 0]
#= [0, 0, 0, 0, 0, 0, 0, 0, 0]

#: no block behind a colon in a string
print("usage:‸")
#>  area RADIUS")
#=  area RADIUS
